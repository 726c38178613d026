"""Cases in, measured rows out: the bundle's answers and the baselines, on the same cases and prompts in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from service.domain.prompts import Prompts
from service.errors import PromptsRefused, SeriesRefused
from service.inference.engine import Engine
from service.segment import segment
from service.telemetry.stages import Stages
from training.baselines import (
    best_grown_region,
    best_otsu_in_box,
    best_sphere,
    ellipsoid_in_box,
    grown_region,
    otsu_in_box,
)
from training.evaluation.cases import Case
from training.evaluation.prompting import (
    BOX,
    CENTRE,
    LOOSE_BOX,
    RANDOM,
    TEXT,
    WRONG_TEXT,
    Answer,
    Reply,
    answers,
    places_of,
)
from training.metrics import Scores, score

TAGS = "TAGS"  # the method of the bundle's rows; all others are baselines
ONE_CENTRE, ONE_RANDOM = f"{CENTRE}-1", f"{RANDOM}-1"
SliceModel = Callable[[np.ndarray, np.ndarray, str], np.ndarray]  # voxels, box, modality -> (D, H, W) bool


@dataclass(frozen=True)
class Row:
    """One prompt of one case, answered by the bundle or by a baseline."""

    case: str
    group: str  # organ, else modality: a column of the table
    prompt: str
    method: str  # TAGS, or a baseline
    seconds: float
    scores: Scores | None  # None for a text that the scan does not show
    silent: bool  # the mask is empty
    correction: int | None = None  # label of the click that corrects the answer before
    obeyed: bool | None = None
    refused: str | None = None  # slug of the problem that the service answered instead; scored as an empty mask


@dataclass(frozen=True)
class Plan:
    """What a run asks about every case."""

    prompts: tuple[str, ...]  # of PROMPTS
    seed: int = 0  # of random clicks and jittered boxes
    baselines: bool = True
    slice_model: SliceModel | None = None  # a slice-by-slice network among the baselines of the boxes


@dataclass(frozen=True)
class Board:
    """What a run measured, in the order of the cases."""

    rows: tuple[Row, ...]
    patients: dict[str, str]  # by case; kept in memory only
    volumes_ml: dict[str, float]  # by case


async def measure_all(cases: Iterable[Case], plan: Plan, engine: Engine) -> Board:
    """Raises: ModelUnavailable: a network failed, so the run is void."""
    rows: list[Row] = []
    patients, volumes_ml = {}, {}
    for case in cases:
        rows += await measure(case, plan, engine)
        if plan.baselines:
            rows += measure_baselines(case, plan)
        patients[case.name], volumes_ml[case.name] = case.patient, round(case.volume_ml, 2)
    return Board(tuple(rows), patients, volumes_ml)


async def measure(case: Case, plan: Plan, engine: Engine) -> list[Row]:
    """The bundle's answers, by the use case that serves users. What the service refuses counts as an empty answer."""

    async def ask(prompts: Prompts) -> Reply:
        started, mask, refused = time.perf_counter(), np.zeros(case.truth.shape, bool), None
        try:
            mask = (await segment(case.source, prompts, engine, Stages())).voxels
        except (SeriesRefused, PromptsRefused) as problem:
            refused = problem.slug
        return Reply(mask, time.perf_counter() - started, refused)

    places = places_of(case, plan.seed)
    return [_row(case, TAGS, answer) async for answer in answers(case, places, plan.prompts, ask)]


def measure_baselines(case: Case, plan: Plan) -> Iterator[Row]:
    """What the first click and the boxes give without TAGS."""
    places, image = places_of(case, plan.seed), case.source.voxels
    for prompt, click in ((ONE_CENTRE, places.centre), (ONE_RANDOM, places.anywhere)):
        if prompt in plan.prompts:
            yield from _timed(case, prompt, from_click(case, image, click))
    for prompt, box in ((BOX, places.box), (LOOSE_BOX, places.loose_box)):
        if prompt in plan.prompts:
            yield from _timed(case, prompt, from_box(case, image, box, plan.slice_model))


Methods = dict[str, Callable[[], np.ndarray]]


def from_click(case: Case, image: np.ndarray, click: np.ndarray) -> Methods:
    return {
        "sphere, best radius": lambda: best_sphere(case.truth, click, case.spacing_zyx_mm),
        "region growing": lambda: grown_region(image, click),
        "region growing, best": lambda: best_grown_region(image, case.truth, click),
    }


def from_box(case: Case, image: np.ndarray, box: np.ndarray, slice_model: SliceModel | None) -> Methods:
    methods: Methods = {
        "ellipsoid": lambda: ellipsoid_in_box(case.truth.shape, box),  # type: ignore[arg-type]
        "Otsu": lambda: otsu_in_box(image, box),
        "Otsu, best side": lambda: best_otsu_in_box(image, case.truth, box),
    }
    if slice_model:
        methods["LiteMedSAM"] = lambda: slice_model(image, box, case.source.modality)
    return methods


def _timed(case: Case, prompt: str, methods: Methods) -> Iterator[Row]:
    for method, run in methods.items():
        started = time.perf_counter()
        mask = run()
        yield _row(case, method, Answer(prompt, Reply(mask, time.perf_counter() - started)))


def _row(case: Case, method: str, answer: Answer) -> Row:
    reply, truth = answer.reply, case.truth
    if answer.prompt == TEXT and case.text_truth is not None:
        truth = case.text_truth
    return Row(
        case=case.name,
        group=case.organ or case.source.modality,
        prompt=answer.prompt,
        method=method,
        seconds=round(reply.seconds, 2),
        scores=None if answer.prompt == WRONG_TEXT else score(reply.mask, truth, case.spacing_zyx_mm),
        silent=not reply.mask.any(),
        correction=answer.correction,
        obeyed=answer.obeyed,
        refused=reply.refused,
    )
