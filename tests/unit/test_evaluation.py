"""The scoreboard on made-up cases, by the service's own code with an engine that answers at once."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from service.domain.prompts import Prompts
from service.errors import ModelBusy
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine
from tests.phantoms import write_ct_series
from training.__main__ import app
from training.evaluation import command
from training.evaluation.cases import Case, array_case, read_case
from training.evaluation.prompting import (
    BOX,
    BOX_CLICK,
    LOOSE_BOX,
    ORGAN_CLICK,
    PROMPTS,
    TEXT,
    TEXT_CLICK,
    WRONG_TEXT,
    Reply,
    answers,
    deepest,
    dialogue,
    largest_part,
    places_of,
    single_prompts,
)
from training.evaluation.report import Mean, markdown, summarise
from training.evaluation.scoreboard import TAGS, Plan, Row, measure_all
from training.layouts import CaseFiles, CaseUnusable
from training.metrics import Scores

SPACING = (3.0, 1.0, 1.5)


def two_lumps() -> np.ndarray:
    """(20, 40, 30) bool: a large and a small part."""
    z, y, x = np.ogrid[:20, :40, :30]
    large = ((z - 9) / 4) ** 2 + ((y - 14) / 9) ** 2 + ((x - 12) / 6) ** 2 <= 1
    small = ((z - 15) / 2) ** 2 + ((y - 33) / 3) ** 2 + ((x - 24) / 2) ** 2 <= 1
    return large | small


def case_of(truth: np.ndarray, name: str = "one") -> Case:
    voxels = np.where(truth, 180, 40) + np.random.default_rng(1).normal(0, 3, truth.shape)
    return array_case(name, voxels, SPACING, truth, modality="CT")


async def collected(case: Case, wanted, ask) -> dict:
    return {answer.prompt: answer async for answer in answers(case, places_of(case, 0), wanted, ask)}


def test_the_first_click_is_the_deepest_point_of_the_largest_part_in_millimetres():
    assert deepest(largest_part(two_lumps()), SPACING).tolist() == [9, 14, 12]
    flat = np.ones((5, 9, 9), bool)  # the scan's own border counts
    assert deepest(flat, (10.0, 1.0, 1.0)).tolist()[1:] == [4, 4]


def test_places_depend_on_the_case_and_the_seed_alone():
    case = case_of(two_lumps())
    one, again = places_of(case, 3), places_of(case, 3)
    assert np.array_equal(one.loose_box, again.loose_box)
    assert np.array_equal(one.anywhere, again.anywhere)
    assert not np.array_equal(one.loose_box, places_of(case, 4).loose_box)
    assert not np.array_equal(one.loose_box, places_of(replace(case, name="two"), 3).loose_box)
    assert case.truth[tuple(one.anywhere)]
    assert one.box.tolist() == [[4.5, 4.5, 5.5], [17.5, 36.5, 26.5]]


def test_a_box_of_one_voxel_is_never_turned_inside_out():
    truth = np.zeros((20, 40, 30), bool)
    truth[5, 6, 7] = True
    for seed in range(50):
        low, high = places_of(case_of(truth), seed).loose_box
        assert np.all(low < high)


async def test_each_further_click_goes_into_the_largest_error_and_the_answer_is_fed_back():
    truth, asked = two_lumps(), []
    small = truth & ~largest_part(truth)
    spill = np.zeros_like(truth)
    spill[2:6, 25:39, 2:8] = True
    given = [largest_part(truth) | spill, largest_part(truth), truth]

    async def ask(prompts: Prompts) -> Reply:
        asked.append(prompts)
        return Reply(given[len(asked) - 1], 0.1)

    case = case_of(truth)
    found = [answer async for answer in dialogue(case, "centre", np.array([9, 14, 12]), 5, ask)]
    assert [answer.prompt for answer in found] == [f"centre-{count}" for count in range(1, 6)]
    assert len(asked) == 3  # the third answer is perfect, so nothing is left to click at
    assert [prompts.labels.tolist() for prompts in asked] == [[1], [1, 0], [1, 0, 1]]
    clicks = np.rint(case.source.geometry.to_index(asked[2].points_lps_mm)).astype(int)
    assert spill[tuple(clicks[1])]
    assert small[tuple(clicks[2])]
    assert asked[0].mask is None
    assert np.array_equal(asked[1].mask, given[0])
    assert [answer.correction for answer in found] == [None, 0, 1, None, None]
    assert [answer.obeyed for answer in found] == [None, True, True, None, None]


async def test_a_click_that_changes_nothing_is_not_obeyed():
    case = case_of(two_lumps())
    stubborn = largest_part(case.truth)

    async def ask(prompts: Prompts) -> Reply:
        return Reply(stubborn, 0.1)

    found = await collected(case, ["centre-3"], ask)
    assert found["centre-3"].correction == 1
    assert found["centre-3"].obeyed is False


async def test_only_what_a_case_has_is_asked():
    asked = []

    async def ask(prompts: Prompts) -> Reply:
        asked.append(prompts)
        return Reply(case.truth, 0.1)

    case = case_of(two_lumps())
    found = await collected(case, PROMPTS, ask)
    assert {BOX, LOOSE_BOX, BOX_CLICK} <= set(found)
    assert not {TEXT, TEXT_CLICK, ORGAN_CLICK, WRONG_TEXT} & set(found)
    case = case.named("liver", organ_mask=np.ones_like(case.truth), absent="kidney")
    assert {TEXT, TEXT_CLICK, ORGAN_CLICK, WRONG_TEXT} <= set(await collected(case, PROMPTS, ask))
    asked.clear()
    assert set(await collected(case, [BOX], ask)) == {BOX}
    assert len(asked) == 1


def test_prompts_say_what_they_are_called():
    case = case_of(two_lumps())
    case = case.named("liver", organ_mask=np.ones_like(case.truth), absent="kidney")
    asked = single_prompts(case, places_of(case, 0))
    assert (asked[TEXT].text, asked[TEXT].target, len(asked[TEXT].points_lps_mm)) == ("liver tumour", "liver", 0)
    assert asked[WRONG_TEXT].text == "kidney tumour"
    assert asked[ORGAN_CLICK].organ_mask is case.organ_mask
    assert asked[BOX_CLICK].boxes_lps_mm.shape == (1, 8, 3)
    spans = np.ptp(asked[BOX].boxes_lps_mm[0], axis=0)
    assert spans == pytest.approx([21 * 1.5, 32 * 1.0, 13 * 3.0])  # x, y, z of the outer faces


async def test_the_board_has_the_bundle_and_every_baseline_on_the_same_prompts():
    case = case_of(two_lumps())
    board = await measure_all([case], Plan(("centre-1", BOX)), FakeEngine(FAKE_BUNDLE))
    by_prompt = {prompt: [row.method for row in board.rows if row.prompt == prompt] for prompt in ("centre-1", BOX)}
    assert by_prompt["centre-1"] == [TAGS, "sphere, best radius", "region growing", "region growing, best"]
    assert by_prompt[BOX] == [TAGS, "ellipsoid", "Otsu", "Otsu, best side"]
    assert board.volumes_ml["one"] == pytest.approx(case.truth.sum() * 4.5 / 1000, abs=0.01)
    scores = {(row.prompt, row.method): row.scores.dice for row in board.rows}
    assert scores[BOX, "Otsu"] > 0.95
    assert scores[BOX, TAGS] > 0.7  # the fake finds what is bright, on a grid of 2 mm
    assert scores["centre-1", TAGS] < scores[BOX, TAGS]  # a click means one of the two parts


async def test_a_refusal_is_an_empty_answer_and_says_why():
    case = case_of(two_lumps())
    foreign = replace(case, source=replace(case.source, modality="PT"))
    board = await measure_all([foreign], Plan((BOX,), baselines=False), FakeEngine(FAKE_BUNDLE))
    (row,) = board.rows
    assert (row.refused, row.silent, row.scores.dice) == ("unsupported-modality", True, 0)


async def test_a_network_that_fails_ends_the_run():
    with pytest.raises(ModelBusy):
        await measure_all([case_of(two_lumps())], Plan((BOX,)), FakeEngine(FAKE_BUNDLE, error=ModelBusy("full")))


async def test_text_is_scored_by_all_that_it_means_and_a_wrong_text_by_silence():
    truth = two_lumps()
    case = case_of(truth).named("liver", organ_mask=None, text_truth=truth, absent="kidney")
    case = replace(case, truth=largest_part(truth))
    rows = (await measure_all([case], Plan((TEXT, WRONG_TEXT)), FakeEngine(FAKE_BUNDLE))).rows
    assert rows[0].scores.dice > 0.7  # both parts
    assert rows[1].scores is None
    assert not rows[1].silent  # the fake knows no organs
    summary = summarise(rows, {"one": "p"})
    assert summary.text_found.mean == 1
    assert summary.wrong_text_silent.mean == 0
    assert all(line.prompt != WRONG_TEXT for line in summary.lines)


def row(case: str, dice: float, **others) -> Row:
    known = {"group": "liver", "prompt": BOX, "method": TAGS, "seconds": 1.0, "silent": False}
    return Row(case=case, scores=Scores(dice, dice, dice, 10 * (1 - dice), 0.5 - dice), **(known | others))


def test_means_leave_out_what_does_not_exist_and_intervals_hold_them():
    rows = [row("a", 0.2), row("b", 0.4), row("c", 0.9)]
    rows.append(replace(row("d", 0.0), scores=Scores(0.0, 0.0, 0.0, None, -1.0), silent=True))
    (line,) = summarise(rows, {name: name for name in "abcd"}).lines
    assert line.dice.mean == pytest.approx(0.375)
    assert line.dice.cases == 4
    assert 0 <= line.dice.low < 0.375 < line.dice.high <= 0.9
    assert (line.hd95_mm.mean, line.hd95_mm.cases) == (pytest.approx(5.0), 3)
    assert line.volume_error.mean == pytest.approx((0.3 + 0.1 + 0.4 + 1) / 4)
    assert line.empty == 1


def test_two_scans_of_one_patient_are_one_observation():
    names, found = "abcdefgh", (0.2, 0.2, 0.3, 0.3, 0.7, 0.7, 0.8, 0.8)
    rows = [row(name, dice) for name, dice in zip(names, found, strict=True)]
    alone = summarise(rows, {name: name for name in names}).lines[0].dice
    paired = summarise(rows, dict(zip(names, "ppqqrrss", strict=True))).lines[0].dice
    assert alone.mean == paired.mean == 0.5
    assert paired.high - paired.low > 1.2 * (alone.high - alone.low)
    assert summarise(rows, dict.fromkeys(names, "p")).lines[0].dice == Mean(0.5, 0.5, 0.5, 8)


def test_groups_get_lines_of_their_own_when_there_are_several():
    rows = [row("a", 0.2), row("b", 0.6, group="kidney")]
    lines = summarise(rows, {"a": "a", "b": "b"}).lines
    assert [(line.group, line.dice.mean) for line in lines] == [("all", 0.4), ("kidney", 0.6), ("liver", 0.2)]


def test_corrections_are_told_apart_by_label():
    rows = [
        row("a", 0.5, prompt="centre-1"),
        row("a", 0.7, prompt="centre-2", correction=1, obeyed=True),
        row("a", 0.6, prompt="centre-3", correction=0, obeyed=False),
    ]
    summary = summarise(rows, {"a": "a"})
    assert (summary.foreground_clicks.clicks, summary.foreground_clicks.obeyed) == (1, 1)
    assert summary.foreground_clicks.dice_change.mean == pytest.approx(0.2)
    assert (summary.background_clicks.clicks, summary.background_clicks.obeyed) == (1, 0)
    assert summary.background_clicks.dice_change.mean == pytest.approx(-0.1)


def test_the_table_has_a_row_for_each_line():
    text = markdown(summarise([row("a", 0.25), row("b", 0.75)], {"a": "a", "b": "b"}))
    assert "| all | box | TAGS | 50.0 (25.0-75.0) |" in text


def nifti(path, voxels_zyx: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(voxels_zyx.transpose(2, 1, 0), affine), path)


AFFINE = np.array([[-1.5, 0, 0, 10], [0, -1, 0, 20], [0, 0, 3, -7], [0, 0, 0, 1]], float)


def test_nifti_pairs_keep_their_place_in_the_patient_frame(tmp_path):
    truth = two_lumps()
    nifti(tmp_path / "image.nii", np.where(truth, 180, 40).astype(np.int16), AFFINE)
    nifti(tmp_path / "mask.nii", np.where(truth, 2, 1).astype(np.uint8), AFFINE)
    files = CaseFiles("n", tmp_path / "image.nii", tmp_path / "mask.nii", (2,), (1, 2), organ="liver")
    case = read_case(files)
    assert np.array_equal(case.truth, truth)
    assert case.organ_mask.all()
    assert (case.finding, case.source.modality, case.patient) == ("liver tumour", "CT", "n")
    assert case.spacing_zyx_mm == SPACING
    assert case.source.geometry.to_lps_mm(np.array([[1, 2, 3]]))[0] == pytest.approx([-5.5, -18, -4])
    assert np.array_equal(case.source.read(3, 5).voxels, case.source.voxels[3:5])


def test_a_mask_elsewhere_and_a_mask_without_tumour_are_unusable(tmp_path):
    truth = two_lumps()
    nifti(tmp_path / "image.nii", truth.astype(np.int16), AFFINE)
    nifti(tmp_path / "mask.nii", truth.astype(np.uint8), AFFINE + np.eye(4)[3] * 0.5 * np.eye(4)[:, :1])
    with pytest.raises(CaseUnusable, match="grid"):
        read_case(CaseFiles("n", tmp_path / "image.nii", tmp_path / "mask.nii"))
    nifti(tmp_path / "mask.nii", truth.astype(np.uint8), AFFINE)
    with pytest.raises(CaseUnusable, match="no tumour"):
        read_case(CaseFiles("n", tmp_path / "image.nii", tmp_path / "mask.nii", (2,)))


def dicom_case(directory, name: str):
    series = write_ct_series(directory / name / "image", file_order="random")
    affine = np.diag([-1.0, -1, 1, 1]) @ series.geometry.affine[:, [2, 1, 0, 3]]
    nifti(directory / name / "mask.nii.gz", series.tumour.astype(np.uint8), affine)
    return series


def test_a_dicom_series_is_read_as_the_service_reads_it(tmp_path):
    series = dicom_case(tmp_path, "a")
    case = read_case(CaseFiles("a", tmp_path / "a" / "image", tmp_path / "a" / "mask.nii.gz"))
    assert np.array_equal(case.truth, series.tumour)
    assert np.array_equal(case.source.voxels, series.voxels)
    assert case.patient == "CANARY-4711"


def run(monkeypatch, *arguments: str):
    monkeypatch.setattr(command, "load_bundle", lambda directory: FAKE_BUNDLE)
    monkeypatch.setattr(command, "EmbeddedEngine", lambda bundle, threads, max_waiting: FakeEngine(bundle))
    return CliRunner().invoke(app, ["evaluate", *arguments])


def test_the_command_writes_every_answer_and_names_no_patient(monkeypatch, tmp_path):
    dicom_case(tmp_path / "cases", "a")
    (tmp_path / "cases" / "b" / "image").mkdir(parents=True)
    (tmp_path / "cases" / "b" / "image" / "note.txt").write_text("no image")
    nifti(tmp_path / "cases" / "b" / "mask.nii.gz", two_lumps().astype(np.uint8), AFFINE)
    out = tmp_path / "new" / "report.json"
    done = run(monkeypatch, "--cases", str(tmp_path / "cases"), "--out", str(out), "--prompts", "centre-3,box")
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    assert list(document["cases"]["unusable"]) == ["b"]
    assert document["cases"]["patients"] == 1
    assert {entry["prompt"] for entry in document["rows"]} == {"centre-1", "centre-2", "centre-3", "box"}
    assert document["summary"]["lines"][0]["dice"]["cases"] == 1
    assert "| all | box | TAGS |" in done.output
    assert "CANARY" not in out.read_text() + done.output


@pytest.mark.parametrize(
    "arguments", [[], ["--prompts", "boxes", "--phantoms", "1"]], ids=["no cases", "no such prompt"]
)
def test_the_command_refuses_what_it_cannot_measure(monkeypatch, tmp_path, arguments):
    done = run(monkeypatch, "--out", str(tmp_path / "report.json"), *arguments)
    assert done.exit_code == 2
    assert not (tmp_path / "report.json").exists()
