"""The site-acceptance record: what was examined, when, on what, with the outcome, and lines to sign. HTML or PDF."""

from __future__ import annotations

import socket
from html import escape
from io import BytesIO
from pathlib import Path

from service.doctor.examination import Findings
from service.preview import RESEARCH_USE

TITLE = "TAGS: site acceptance record"
COLOURS = {"green": "#1a7f37", "amber": "#9a6700", "red": "#b42318", "skipped": "#57606a"}
SIGNATURES = ("Examined by", "Accepted by", "Date")
STYLE = """body{font:14px/1.4 sans-serif;max-width:60rem;margin:2rem auto;color:#1f2328}
table{border-collapse:collapse;width:100%}td,th{border:1px solid #d0d7de;padding:.3rem .5rem;text-align:left;
vertical-align:top}.sign td{height:3rem}b{text-transform:uppercase}"""


def write_report(findings: Findings, path: Path) -> None:
    """The record in the form that the file name asks for. Raises: ValueError: neither .html nor .pdf."""
    if path.suffix.lower() == ".html":
        path.write_text(html(findings), encoding="utf-8")
    elif path.suffix.lower() == ".pdf":
        path.write_bytes(pdf(findings))
    else:
        raise ValueError("a report is a .html or a .pdf file")


def facts(findings: Findings) -> list[tuple[str, str]]:
    return [
        ("Outcome", findings.verdict),
        ("Examined at", findings.at),
        ("Host", socket.gethostname()),
        ("Version", findings.version),
        ("Bundle", findings.bundle or "-"),
        ("Use", RESEARCH_USE),
    ]


def html(findings: Findings) -> str:
    head = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts(findings))
    rows = "".join(
        f"<tr><td>{escape(check.name)}</td><td><b style='color:{COLOURS[check.state]}'>{check.state}</b></td>"
        f"<td>{escape(check.found)}</td><td>{escape(check.fix)}</td><td>{check.seconds:g}</td></tr>"
        for check in findings.checks
    )
    signed = "".join(f"<tr><th>{name}</th><td></td></tr>" for name in SIGNATURES)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{TITLE}</title><style>{STYLE}</style>"
        f"<h1>{TITLE}</h1><table>{head}</table><h2>Checks</h2>"
        f"<table><tr><th>Check</th><th>Outcome</th><th>Found</th><th>What to do</th><th>s</th></tr>{rows}</table>"
        f"<h2>Signatures</h2><table class='sign'>{signed}</table></html>\n"
    )


def pdf(findings: Findings) -> bytes:
    from reportlab.lib import colors
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.lib.units import mm
    from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table

    styles = getSampleStyleSheet()
    grid = [("GRID", (0, 0), (-1, -1), 0.5, colors.lightgrey), ("VALIGN", (0, 0), (-1, -1), "TOP")]

    def cell(text: str, style: str = "BodyText") -> Paragraph:
        return Paragraph(text, styles[style])

    rows = [[cell(f"<b>{name}</b>") for name in ("Check", "Outcome", "Found", "What to do")]]
    for check in findings.checks:
        outcome = f"<font color='{COLOURS[check.state]}'><b>{check.state}</b></font>"
        rows.append([cell(escape(check.name)), cell(outcome), cell(escape(check.found)), cell(escape(check.fix))])
    about = [[cell(f"<b>{name}</b>"), cell(escape(value))] for name, value in facts(findings)]
    signed = [[cell(f"<b>{name}</b>"), ""] for name in SIGNATURES]
    stream = BytesIO()
    SimpleDocTemplate(stream, pagesize=A4, title=TITLE, leftMargin=15 * mm, rightMargin=15 * mm).build(
        [
            cell(TITLE, "Title"),
            Table(about, [40 * mm, 140 * mm], style=grid),
            Spacer(1, 6 * mm),
            Table(rows, [38 * mm, 20 * mm, 61 * mm, 61 * mm], style=grid, repeatRows=1),
            Spacer(1, 10 * mm),
            Table(signed, [40 * mm, 140 * mm], [14 * mm] * len(signed), style=grid),
        ]
    )
    return stream.getvalue()
