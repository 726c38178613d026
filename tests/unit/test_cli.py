"""The command line: the code of the API, in this process, with an engine that answers at once."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from contract.bundle import BundleInvalid
from demo.answers import Grid, dice
from service import cli, local
from service.errors import MalformedRequest, ModelNotReady
from service.prompt_document import Box, Point
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine
from tests.phantoms import CANARY, write_ct_series, write_two_echoes


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Tables are cut to the terminal's width, which a test runner does not have."""
    monkeypatch.setattr(cli.out, "_width", 200)
    monkeypatch.setattr(cli.err, "_width", 200)


@pytest.fixture
def engine(monkeypatch):
    fake = FakeEngine()
    monkeypatch.setattr(local, "open_engine", lambda settings: fake)
    return fake


@pytest.fixture
def series(tmp_path):
    return write_ct_series(tmp_path / "series")


def run(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def joined(numbers) -> str:
    return ",".join(str(number) for number in np.ravel(numbers))


def contents(directory) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_folder_and_a_click_give_a_mask_file_and_a_summary(engine, series, tmp_path):
    out = tmp_path / "tumour.nii.gz"
    done = run(
        "segment", tmp_path / "series", "--point", joined(series.centre_lps_mm), "--format", "nifti", "--out", out
    )
    assert done.exit_code == 0, done.output
    assert dice(Grid(tmp_path / "series").nifti(out.read_bytes()), series.tumour) > 0.8
    assert "volume" in done.stdout
    assert "Research use only" in done.stdout
    assert engine.closed


def test_nothing_of_the_patient_is_printed(engine, series, tmp_path):
    done = run("segment", tmp_path / "series", "--point", joined(series.centre_lps_mm), "--out", tmp_path / "t.dcm")
    assert done.exit_code == 0, done.output
    assert CANARY.split("^")[0] not in done.output
    assert series.series_instance_uid not in done.output


def test_the_default_format_is_dicom_seg(engine, series, tmp_path):
    out = tmp_path / "tumour.dcm"
    assert run("segment", tmp_path / "series", "--point", joined(series.centre_lps_mm), "--out", out).exit_code == 0
    assert Grid(tmp_path / "series").seg(out.read_bytes()).any()


def test_one_echo_of_two_is_named(engine, tmp_path):
    echoes, out = write_two_echoes(tmp_path / "series"), tmp_path / "tumour.dcm"
    asked = ["segment", tmp_path / "series", "--point", joined(echoes.centre_lps_mm), "--out", out]
    assert run(*asked).exit_code == 1
    assert run(*asked, "--acquisition", "EchoNumbers=two").exit_code == 1
    assert not out.exists()
    done = run(*asked, "--acquisition", "EchoNumbers=2")
    assert done.exit_code == 0, done.output
    assert "24 (other-acquisition)" in done.stdout


def test_the_senders_files_are_left_alone_archives_too(engine, series, tmp_path):
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for path in series.paths:
            archive.write(path, path.name)
    for path in series.paths[1:]:
        path.unlink()
    (tmp_path / "series.zip").rename(tmp_path / "series" / "rest.zip")
    series.paths[0].unlink()
    before = contents(tmp_path / "series")
    done = run(
        "segment", tmp_path / "series", "--point", joined(series.centre_lps_mm), "--out", tmp_path / "t.dcm"
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert contents(tmp_path / "series") == before


def test_a_refusal_is_a_short_text_and_exit_status_1(engine, series, tmp_path):
    done = run("segment", tmp_path / "series", "--out", tmp_path / "t.dcm")
    assert done.exit_code == 1
    assert done.stderr.startswith("A text, a foreground point, a box or a mask is needed: ")
    assert "Traceback" not in done.output
    assert not (tmp_path / "t.dcm").exists()


def test_several_series_are_listed_to_choose_from(engine, tmp_path):
    first = write_ct_series(tmp_path / "study" / "1", series="first")
    second = write_ct_series(tmp_path / "study" / "2", series="second")
    asked = ("segment", tmp_path / "study", "--point", joined(first.centre_lps_mm), "--out", tmp_path / "t.dcm")
    done = run(*asked)
    assert done.exit_code == 1
    assert {first.series_instance_uid, second.series_instance_uid} <= set(done.stderr.replace('"', " ").split())
    assert run(*asked, "--series", second.series_instance_uid).exit_code == 0


def test_a_fault_is_named_by_code_lines_never_by_its_message(monkeypatch, series, tmp_path):
    def fail(settings):
        raise RuntimeError(f"cannot read {CANARY}")

    monkeypatch.setattr(local, "open_engine", fail)
    done = run("segment", tmp_path / "series", "--index", "1,2,3", "--out", tmp_path / "t.dcm")
    assert done.exit_code == 1
    assert "internal error: RuntimeError at test_cli.py" in done.stderr
    assert CANARY not in done.output


def test_an_engine_that_is_not_ready_is_reported(monkeypatch, series, tmp_path):
    def refuse(settings):
        raise ModelNotReady("the bundle is not here")

    monkeypatch.setattr(local, "open_engine", refuse)
    done = run("segment", tmp_path / "series", "--index", "1,2,3", "--out", tmp_path / "t.dcm")
    assert (done.exit_code, done.stderr) == (1, "The inference engine is not ready: the bundle is not here\n")


def test_an_unknown_format_is_refused_before_any_work(engine, series, tmp_path):
    done = run("segment", tmp_path / "series", "--index", "1,2,3", "--format", "gif", "--out", tmp_path / "t.gif")
    assert done.exit_code == 1
    assert "available are seg, rtstruct" in done.stderr
    assert engine.calls == []


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(FileNotFoundError):
        local.write_whole(tmp_path / "absent" / "t.dcm", b"x")
    (tmp_path / "t.dcm").mkdir()
    with pytest.raises(OSError, match="directory"):
        local.write_whole(tmp_path / "t.dcm", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["t.dcm"]


def test_options_become_the_document_that_the_api_would_be_sent():
    document = cli.prompt_document(
        "liver tumour", "liver", ["-1,2.5,3"], ["4,5,6"], ["10,20,30"], ["0,0,0,5,6,7"]
    )  # fmt: skip
    assert document.points == (
        Point(lps_mm=(-1, 2.5, 3), label=1),
        Point(lps_mm=(4, 5, 6), label=0),
        Point(index=(10, 20, 30), label=1),
    )
    assert document.boxes == (Box(lps_mm=((0, 0, 0), (5, 6, 7))),)
    assert (document.text, document.target) == ("liver tumour", "liver")


@pytest.mark.parametrize("value", ["", "1,2", "1,2,3,4", "a,b,c", "1;2;3"])
def test_a_point_is_three_numbers(value):
    with pytest.raises(MalformedRequest, match="3 numbers"):
        cli.numbers(value, 3)


def test_a_point_that_is_not_finite_is_refused():
    with pytest.raises(MalformedRequest):
        cli.prompt_document(None, None, ["nan,0,0"], None, None, None)


def test_a_setting_out_of_range_is_named(monkeypatch):
    monkeypatch.setenv("TAGS_THREADS", "0")
    done = run("capabilities")
    assert done.exit_code == 1
    assert done.stderr.startswith("TAGS_THREADS: ")


def test_capabilities_are_the_document_of_the_api(monkeypatch):
    monkeypatch.setattr(cli, "load_bundle", lambda directory: FAKE_BUNDLE)
    document = json.loads(run("capabilities", "--json").stdout)
    assert document["bundles"][0]["name"] == "fake"
    assert document["modalities"] == ["CT", "MR"]
    assert "fake 0" in run("capabilities").stdout


def test_a_bundle_that_cannot_be_used_is_reported(monkeypatch):
    def refuse(directory):
        raise BundleInvalid("no usable bundle.json in the bundle directory")

    monkeypatch.setattr(cli, "load_bundle", refuse)
    for command in ("capabilities", "triton"):
        done = run(command)
        assert (done.exit_code, done.stderr) == (1, "no usable bundle.json in the bundle directory\n")


def test_the_service_does_not_start_without_a_bundle_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("TAGS_BUNDLE_DIR", str(tmp_path))
    done = run("serve")
    assert done.exit_code == 1
    assert "TAGS_BUNDLE_DIR holds no usable bundle" in done.stderr
    assert "Traceback" not in done.output


def test_without_arguments_the_help_says_research_use_only():
    assert "Research use only" in " ".join(run().output.split())


def test_a_zip_and_its_folder_give_the_same_answer(engine, series, tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in series.paths:
            archive.write(path, path.name)
    (tmp_path / "series.zip").write_bytes(stream.getvalue())
    answers = []
    for source in ("series", "series.zip"):
        out = tmp_path / f"{source}.nii.gz"
        done = run("segment", tmp_path / source, "--text", "tumour", "--format", "nifti", "--out", out)
        assert done.exit_code == 0, done.output
        answers.append(out.read_bytes())
    assert answers[0] == answers[1]
