"""The documentation cannot fall behind: dependencies, settings, decisions and links are held to what they describe."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from service.app import create_app
from service.conformance import statement
from service.rules.document import Routing
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")))
NAME = re.compile(r"^[A-Za-z0-9-]+")


def dependency_names() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [project["dependencies"], *project["optional-dependencies"].values()]
    return {NAME.match(requirement)[0] for requirements in listed for requirement in requirements}


def setting_row(name: str) -> str:
    """The row of docs/settings.md for a field. A path of this checkout is shown by its name."""
    field = Settings.model_fields[name]
    default = "" if field.default is None else field.default
    shown = default.name if isinstance(default, Path) else str(default)
    return f"| `TAGS_{name.upper()}` | {f'`{shown}`' if shown else ''} | {' '.join(field.description.split())} |"


def test_each_dependency_has_one_line_of_reason_and_no_other_is_listed():
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", (DOCS / "decisions" / "dependencies.md").read_text(), re.M)
    assert sorted(name for name, _ in rows) == sorted(dependency_names())
    assert all(len(reason) > 5 for _, reason in rows)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_is_in_the_documentation_as_it_stands(name):
    assert setting_row(name) in (DOCS / "settings.md").read_text().splitlines()


def test_no_setting_is_documented_that_is_not_there():
    documented = re.findall(r"^\| `TAGS_(\w+)`", (DOCS / "settings.md").read_text(), re.M)
    assert {name.lower() for name in documented} == set(Settings.model_fields)


def test_the_conformance_statement_is_that_of_the_code(monkeypatch):
    for name in [name for name in os.environ if name.startswith("TAGS_")]:
        monkeypatch.delenv(name)
    settings = Settings(dimse_port=11112)
    expected = statement(settings, Routing(), create_app(settings))
    assert (DOCS / "conformance.md").read_text() == expected, "TAGS_DIMSE_PORT=11112 tags conformance > that page"


def test_the_conformance_statement_says_what_this_configuration_protects():
    peers = {"d": {"stow": {"url": "https://d/dicom-web"}}}
    rule = {"name": "research", "match": {"Modality": "CT"}, "prompts": {"text": "t"}, "destinations": ["d"]}
    routing = Routing.model_validate({"destinations": peers, "rules": [rule | {"deidentified": True}]})
    settings = Settings(audit_file=Path("a"), audit_required=True, deidentification_key=SecretStr("k" * 32))
    text = statement(settings, routing, create_app(settings))
    assert "| destination d | STOW-RS | qido |" in text
    assert "| a file, without which nothing is done |" in text
    assert "by replacement | `POST /segment` where it asks, results of the rule research |" in text


def test_each_decision_is_in_the_index():
    index = (DOCS / "decisions" / "README.md").read_text()
    assert all(f"({page.name})" in index for page in (DOCS / "decisions").glob("[0-9]*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_inside_the_repository_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert broken == []


def test_the_start_page_says_research_use_only_and_how_to_begin():
    text = (ROOT / "README.md").read_text()
    assert "Research use only. Not for diagnosis or treatment." in text
    assert all(command in text for command in ("make demo", "make test", "make serve", ".ci/run"))


def test_the_readme_states_the_bundles_measured_figures():
    quality = json.loads((ROOT / "model_repository" / "bundle.json").read_text())["quality"]
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## How good it is") : text.index("## Two commands")]
    heading, *rows = re.findall(r"^\| (.+) \|$", section, re.M)
    _, _, *sets = heading.split(" | ")
    assert sets == list(quality)
    stated = [row.split(" | ") for row in rows]
    assert len(stated) >= 12
    for prompt, method, *figures in stated:
        expected = [quality[name]["mean_dice"].get(prompt, {}).get(method) for name in sets]
        assert figures == ["-" if dice is None else f"{dice:.3f}" for dice in expected], (prompt, method)


def measured(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def test_the_sizing_page_states_the_figures_that_were_measured():
    page = (DOCS / "sizing.md").read_text()
    sizing, ingest = measured("sizing"), measured("ingest")["instances_per_second"]["tags"]
    rows = [f"| {prompt} | {of['cpu_s']} | {of['regions']} |" for prompt, of in sizing["requests"].items()]
    for way, named in (("stow", "STOW-RS"), ("c-store", "C-STORE")):
        rates, cpu_ms = ingest[way], ingest[f"{way}, CPU ms per instance"]
        rows.append(
            f"| receipt by {named}, one sender, eight | {rates['1']:.0f} and {rates['8']:.0f} images a second, "
            f"{cpu_ms['1']:.0f} and {cpu_ms['8']:.0f} ms of one core each |"
        )
    memory = [figure for way in ("stow", "c-store") for figure in ingest[f"{way}, memory MiB"].values()]
    rows.append(f"| {min(memory):.0f} to {max(memory):.0f} MiB |")
    rows.append(f"| {measured('overhead')['gateway_ms'] / 1000:.2f} s of one core |")
    rows.append(f"| {measured('assembling')['uncompressed']['TAGS, whole series']['cpu_s']:.2f} s of one core |")
    rows += [f"bundle `{sizing['bundle'].replace(' ', '` ')},", f"reached {sizing['peak_mib']} MiB"]
    assert [row for row in rows if row.strip("| ") not in page] == []
