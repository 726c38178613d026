"""Rows in, what can be said of them out: means with confidence intervals, what clicks did, and a table.

Intervals are 95 % percentile bootstrap intervals of the mean, resampled by patient: two scans of one tumour are one
observation, not two. They say how far another draw of such patients might move the mean, nothing about other patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from training.evaluation.prompting import BACKGROUND, FOREGROUND, PROMPTS, TEXT, WRONG_TEXT
from training.evaluation.scoreboard import TAGS, Row
from training.metrics import Scores

RESAMPLES = 10_000
BOOTSTRAP_SEED = 0  # the same rows give the same interval
FOUND_DICE = 0.5  # from here on the answer is the tumour, badly or well outlined
EVERY_GROUP = "all"


@dataclass(frozen=True)
class Mean:
    """A mean over cases; fewer than the cases where a figure does not exist for some."""

    mean: float
    low: float  # 95 % interval; the mean itself with a single patient
    high: float
    cases: int


@dataclass(frozen=True)
class Line:
    """One method under one prompt in one group."""

    group: str
    prompt: str
    method: str
    dice: Mean
    nsd_5mm: Mean
    nsd_2mm: Mean
    hd95_mm: Mean | None  # None: every answer was empty
    volume_error: Mean  # of its magnitude, so that errors do not cancel
    empty: int  # answers without a voxel
    seconds: float  # median


@dataclass(frozen=True)
class Correction:
    """What the clicks of one label did to the answers that they corrected."""

    clicks: int
    obeyed: float  # share of clicked voxels that are now as their label says
    dice_change: Mean  # answer after minus answer before


@dataclass(frozen=True)
class Summary:
    """Everything that the rows say."""

    lines: tuple[Line, ...]
    foreground_clicks: Correction | None
    background_clicks: Correction | None
    text_found: Mean | None  # share of texts whose tumour was found (Dice at least FOUND_DICE)
    wrong_text_silent: Mean | None  # share of texts for what is not there that found nothing


def summarise(rows: Sequence[Row], patients: Mapping[str, str]) -> Summary:
    """Args: patients: by case name."""
    groups = sorted({row.group for row in rows})
    lines = []
    for group in (EVERY_GROUP, *groups) if len(groups) > 1 else (EVERY_GROUP,):
        for prompt in PROMPTS:
            of_prompt = [
                row for row in rows if row.prompt == prompt and row.scores and group in (EVERY_GROUP, row.group)
            ]
            for method in dict.fromkeys(row.method for row in of_prompt):
                lines.append(_line(group, [row for row in of_prompt if row.method == method], patients))
    texts = [row for row in rows if row.prompt == TEXT]
    wrong = [row for row in rows if row.prompt == WRONG_TEXT]
    return Summary(
        lines=tuple(lines),
        foreground_clicks=_correction(rows, FOREGROUND, patients),
        background_clicks=_correction(rows, BACKGROUND, patients),
        text_found=_mean(texts, lambda row: float(row.scores is not None and row.scores.dice >= FOUND_DICE), patients),
        wrong_text_silent=_mean(wrong, lambda row: float(row.silent), patients),
    )


def figures(summary: Summary, cases: int) -> dict[str, Any]:
    """The means alone, for `bundle.json`: mean Dice by prompt, then by method, and what texts and clicks did."""
    dice: dict[str, dict[str, float]] = {}
    for line in summary.lines:
        if line.group == EVERY_GROUP:
            dice.setdefault(line.prompt, {})[line.method] = round(line.dice.mean, 3)
    said = {
        "text_found": summary.text_found and summary.text_found.mean,
        "wrong_text_silent": summary.wrong_text_silent and summary.wrong_text_silent.mean,
        "foreground_click_adds_dice": summary.foreground_clicks and summary.foreground_clicks.dice_change.mean,
        "background_click_adds_dice": summary.background_clicks and summary.background_clicks.dice_change.mean,
    }
    return {"cases": cases, "mean_dice": dice} | {name: value for name, value in said.items() if value is not None}


def markdown(summary: Summary) -> str:
    """The table in the form of the paper (Dice and NSD at 5 mm, in per cent), with what the paper leaves out."""
    heading = "| group | prompt | method | Dice % | NSD 5 mm % | NSD 2 mm % | HD95 mm | volume off by % | empty | s |"
    table = [heading, "|---|---|---|---|---|---|---|---|---|---|"]
    for line in summary.lines:
        cells = [line.group, line.prompt, line.method, _shown(line.dice, 100), _shown(line.nsd_5mm, 100)]
        cells += [_shown(line.nsd_2mm, 100), _shown(line.hd95_mm), _shown(line.volume_error, 100)]
        table.append(f"| {' | '.join([*cells, str(line.empty), f'{line.seconds:.1f}'])} |")
    said = []
    for name, clicks in (("Foreground", summary.foreground_clicks), ("Background", summary.background_clicks)):
        if clicks:
            change = _shown(clicks.dice_change, 100)
            said.append(f"{name} corrections: {clicks.clicks}, obeyed {clicks.obeyed:.0%}, Dice {change} points.")
    if summary.text_found:
        said.append(f"Text alone finds the tumour (Dice at least {FOUND_DICE}) in {_shown(summary.text_found, 100)} %.")
    if summary.wrong_text_silent:
        said.append(f"A text for what is not there finds nothing in {_shown(summary.wrong_text_silent, 100)} %.")
    return "\n".join([*table, "", *said]).strip()


def _line(group: str, rows: Sequence[Row], patients: Mapping[str, str]) -> Line:
    def mean(figure: Callable[[Scores], float | None]) -> Mean | None:
        return _mean(rows, lambda row: figure(row.scores) if row.scores else None, patients)

    return Line(
        group=group,
        prompt=rows[0].prompt,
        method=rows[0].method,
        dice=mean(lambda scores: scores.dice),  # type: ignore[arg-type]  # every row has these
        nsd_5mm=mean(lambda scores: scores.nsd_5mm),  # type: ignore[arg-type]
        nsd_2mm=mean(lambda scores: scores.nsd_2mm),  # type: ignore[arg-type]
        hd95_mm=mean(lambda scores: scores.hd95_mm),
        volume_error=mean(lambda scores: abs(scores.volume_error)),  # type: ignore[arg-type]
        empty=sum(row.silent for row in rows),
        seconds=float(np.median([row.seconds for row in rows])),
    )


def _correction(rows: Iterable[Row], label: int, patients: Mapping[str, str]) -> Correction | None:
    """Rows of a dialogue follow one another: the row before a correction holds the answer that it corrects."""
    pairs = [(before, row) for before, row in pairwise(rows) if row.method == TAGS and row.correction == label]
    if not pairs:
        return None
    changes = {id(row): row.scores.dice - before.scores.dice for before, row in pairs}  # type: ignore[union-attr]
    after = [row for _, row in pairs]
    change = _mean(after, lambda row: changes[id(row)], patients)
    assert change is not None
    return Correction(len(pairs), sum(bool(row.obeyed) for row in after) / len(after), change)


def _mean(
    rows: Iterable[Row], figure: Callable[[Row], float | None], patients: Mapping[str, str]
) -> Mean | None:  # fmt: skip
    """Over the rows for which the figure exists."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if (value := figure(row)) is not None:
            values.setdefault(patients[row.case], []).append(value)
    if not values:
        return None
    sums = np.array([sum(of_patient) for of_patient in values.values()])
    counts = np.array([len(of_patient) for of_patient in values.values()])
    mean = float(sums.sum() / counts.sum())
    low = high = mean
    if len(values) > 1:
        interval = bootstrap(
            (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
            n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(BOOTSTRAP_SEED),
        ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
    return Mean(round(mean, 4), round(low, 4), round(high, 4), int(counts.sum()))


def _shown(mean: Mean | None, scale: float = 1) -> str:
    return f"{scale * mean.mean:.1f} ({scale * mean.low:.1f}-{scale * mean.high:.1f})" if mean else "-"
