"""Fine-tuning on a tiny data set in MSD layout: it learns, keeps what it must, resumes, and its result is served."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from lightning_fabric import Fabric  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from contract.bundle import load_bundle  # noqa: E402
from contract.sizes import CONFIGURATIONS, VIT_B  # noqa: E402
from contract.tensors import LABEL_BACKGROUND, LABEL_FOREGROUND  # noqa: E402
from export.checkpoint import load_checkpoint  # noqa: E402
from export.networks.build import build_tags  # noqa: E402
from export.pretrained import load_clip_text, load_sam  # noqa: E402
from export.repository import write_repository  # noqa: E402
from service.inference.embedded import EmbeddedEngine  # noqa: E402
from tests.parity import upstream_files as upstream  # noqa: E402
from tests.parity.finetuning_worker import run  # noqa: E402
from tests.parity.little import LITTLE, SPLIT, anatomy, write_msd, write_weights  # noqa: E402
from training.__main__ import app  # noqa: E402
from training.evaluation.cases import read_case  # noqa: E402
from training.evaluation.scoreboard import Plan as Questions  # noqa: E402
from training.evaluation.scoreboard import measure_all  # noqa: E402
from training.finetuning.freezing import exported, freeze, frozen_state, trained_count  # noqa: E402
from training.finetuning.loop import Data, Epoch, Origin, Plan, build, fine_tune, rate_share, start  # noqa: E402
from training.finetuning.objective import alignment_loss  # noqa: E402
from training.finetuning.preparation import PreparedCase, on_grid, prepare  # noqa: E402
from training.finetuning.recipes import ANY_CT, PAPER_CT, paper_rules, recipe_of  # noqa: E402
from training.finetuning.samples import cut, training_sample, validation_sample  # noqa: E402
from training.finetuning.splits import SplitInvalid, read_split  # noqa: E402
from training.layouts import CaseFiles, CaseUnusable, find_cases  # noqa: E402
from training.loop import collate  # noqa: E402

PLAN = Plan(config="little", epochs=2, rate=2e-3, seed=5)


@pytest.fixture(autouse=True)
def _little(monkeypatch):
    monkeypatch.setitem(CONFIGURATIONS, "little", LITTLE)
    torch.set_num_threads(1)


@pytest.fixture(name="msd", scope="module")
def _msd(tmp_path_factory):
    return write_msd(tmp_path_factory.mktemp("msd"))


@pytest.fixture(name="origin", scope="module")
def _origin(tmp_path_factory):
    return Origin(*write_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(name="data", scope="module")
def _data(msd, tmp_path_factory):
    split = read_split(msd / "split.json", 0, find_cases(msd))
    root = tmp_path_factory.mktemp("prepared")
    train, val = (tuple(prepare(case, root) for case in cases) for cases in (split.train, split.val))
    return Data(train, val, recipe_of(train, LITTLE, None))


def on_cpu(plan, origin, data, out, *, resume=False):
    return fine_tune(plan, origin, data, out, Fabric(accelerator="cpu", devices=1), resume=resume)


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_frozen_tensors_stay_bit_identical(data, origin, tmp_path):
    before = build(PLAN, origin)
    on_cpu(replace(PLAN, epochs=16), origin, data, tmp_path)
    losses = [entry["train"]["loss"] for entry in logged(tmp_path)]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    after = torch.load(tmp_path / "last.pt", weights_only=True)["run"]["model"]
    frozen = frozen_state(before)
    assert len(frozen) > 60
    for name, value in frozen.items():
        assert torch.equal(value, after[name]), name
    moved = {name for name, value in before.named_parameters() if not torch.equal(value, after[name])}
    for part in ("adapter.", "norm1", "rel_pos_d", "depth_embed", "weight.0.factor", "neck_3d", "alignment", "pyramid"):
        assert any(part in name for name in moved), part


def test_a_resumed_run_ends_as_an_uninterrupted_one(data, origin, tmp_path):
    on_cpu(replace(PLAN, epochs=3), origin, data, tmp_path / "whole")
    on_cpu(replace(PLAN, epochs=1), origin, data, tmp_path / "halted")
    on_cpu(replace(PLAN, epochs=3), origin, data, tmp_path / "halted", resume=True)
    whole, halted = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "halted"))
    for name, value in whole["run"]["model"].items():
        assert torch.equal(value, halted["run"]["model"][name]), name
    assert [entry["val"] for entry in logged(tmp_path / "whole")] == [e["val"] for e in logged(tmp_path / "halted")]
    assert whole["run"]["best"] == halted["run"]["best"]


def test_the_best_epoch_is_kept(data, origin, tmp_path):
    best = on_cpu(replace(PLAN, epochs=4), origin, data, tmp_path)
    losses = [entry["val"]["loss"] for entry in logged(tmp_path)]
    state = torch.load(best, weights_only=True)
    assert state["meta"]["training"]["epochs"] == 1 + int(np.argmin(losses))
    assert set(state) == {"config", "state_dict", "meta"}


async def test_the_result_is_exported_served_and_evaluated(msd, data, origin, tmp_path):
    best = on_cpu(replace(PLAN, epochs=8), origin, data, tmp_path)
    checkpoint = load_checkpoint(best, LITTLE)
    write_repository(checkpoint, tmp_path / "bundle", name="little", version="1", threads=1, report=lambda _: None)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.rule("CT", "liver") == PAPER_CT["liver"]
    assert bundle.targets == ("liver",)
    engine = EmbeddedEngine(bundle, threads=1, max_waiting=1)
    (files,) = read_split(msd / "split.json", 0, find_cases(msd)).val
    board = await measure_all([read_case(files)], Questions(("organ+click",), baselines=False), engine)
    await engine.close()
    assert board.rows[0].refused is None
    assert board.rows[0].scores.dice > 0.3  # after 24 crops: the point is that the path is whole


def test_before_training_the_exported_weights_are_those_that_were_loaded(origin):
    plain = build_tags(LITTLE)
    load_sam(plain, origin.sam)
    load_clip_text(plain, origin.clip)
    weights = exported(build(PLAN, origin))
    assert set(weights) == set(plain.state_dict())
    for name, value in plain.named_parameters():
        if name.startswith(("sam_encoder.blocks.0.attn", "sam_encoder.patch_embed", "clip_text_embedder")):
            assert torch.equal(weights[name], value), name


def test_at_paper_size_the_encoder_trains_what_the_paper_trains():
    with torch.device("meta"):
        model = build_tags(VIT_B)
        freeze(model, train_text_projection=False)
    adapters, necks, norms, depth, alignment = 7_220_736, 7_868_416, 36_864, 24_576, 2_359_296
    slices = 768 * 6 + 768  # six taps for the paper's sixteen slices, and the bias
    relative = 12 * 15 * 64  # our tables have the window's own length
    trained = {name: p.numel() for name, p in model.sam_encoder.named_parameters() if p.requires_grad}
    heads = sum(count for name, count in trained.items() if name.startswith("mlahead"))  # the paper counts them apart
    assert sum(trained.values()) - heads == adapters + necks + norms + depth + alignment + slices + relative
    assert not any(p.requires_grad for p in model.clip_text_embedder.parameters())
    some, every = trained_count(model)
    assert 0 < some < every


def test_a_text_tower_of_another_width_gets_its_projection_trained(tmp_path, origin):
    narrow = upstream.openai_text(LITTLE.text_width, LITTLE.text_width, LITTLE.text_depth, upstream.random)
    torch.save(narrow, tmp_path / "narrow.pth")
    trained = {
        name
        for clip in (origin.clip, tmp_path / "narrow.pth")
        for name, parameter in build(PLAN, replace(origin, clip=clip)).named_parameters()
        if name.startswith("clip") and parameter.requires_grad
    }
    assert trained == {"clip_text_embedder.text_projection"}
    assert not build(PLAN, origin).clip_text_embedder.text_projection.requires_grad


def test_processes_share_an_epoch_without_overlap(data):
    plan = replace(PLAN, batch=2)
    alone = [Epoch(data, plan, 1, 0, 1)[index] for index in range(4)]
    for rank in (0, 1):
        share = Epoch(data, replace(plan, batch=1), 1, rank, 2)
        assert len(share) == 2
        for index in range(2):
            assert np.array_equal(share[index].image, alone[2 * index + rank].image)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(data, origin, tmp_path):
    """The mean of two gradients is the gradient of two crops, up to rounding."""
    on_cpu(replace(PLAN, batch=2), origin, data, tmp_path / "one")
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn")
    # bound beforehand: Fabric looks through arguments for modules and would write to frozen types
    fabric.launch(partial(run, plan=PLAN, origin=origin, data=data, out=tmp_path / "two"))
    one, two = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("one", "two"))
    assert two["meta"]["training"]["batch"] == 2
    for name, value in one["state_dict"].items():
        assert torch.allclose(value, two["state_dict"][name], atol=2e-3), name


def test_a_crop_keeps_image_tumour_and_organ_together(data):
    case, rng = data.train[0], np.random.default_rng(0)
    for _ in range(12):
        sample = training_sample(case, data.recipe, rng)
        if not sample.target.any():
            continue
        inside, tumour = sample.image[0] > sample.image[0].mean(), sample.target[0] > 0
        assert inside[tumour].mean() > 0.9  # the tumour is the brightest, wherever it was turned
        if sample.organ_mask.any():
            assert (sample.organ_mask[0] > 0)[tumour].mean() > 0.95
        for place, label in zip(sample.point_coords, sample.point_labels, strict=True):
            if label in (LABEL_FOREGROUND, LABEL_BACKGROUND) and not sample.mask_prompt.any():
                at = np.clip(np.rint(place).astype(int), 0, LITTLE.roi - 1)
                near = tumour[tuple(slice(max(0, i - 1), i + 2) for i in at)]
                assert near.any() if label == LABEL_FOREGROUND else not near.all()


def test_a_sample_is_a_function_of_its_seed(data):
    one, again, other = (training_sample(data.train[1], data.recipe, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.point_coords, again.point_coords)
    assert not np.array_equal(one.image, other.image)


def test_a_validation_sample_has_one_click_in_the_tumour(data):
    sample = validation_sample(data.val[0], data.recipe, np.random.default_rng(0))
    assert (sample.point_labels >= 0).sum() == 1
    assert sample.target.any()


def test_a_cut_beyond_the_scan_is_padded_and_says_so(data):
    case = data.train[0]
    crop = cut(case, np.array([-10, 0, 0]), 32, 32)
    assert not crop.inside[:10].any()
    assert crop.inside[10:, :32].all()
    assert np.array_equal(crop.image[10:], case.image()[:22, :32, :32].astype(np.float32))
    halved = cut(case, np.array([0, 0, 0]), 32, 16)
    assert halved.image.shape == (16, 16, 16)
    assert halved.image.mean() == pytest.approx(cut(case, np.array([0, 0, 0]), 32, 32).image.mean(), abs=1)


AFFINES = {  # of x, y, z as stored; one patient
    "LPS": np.array([[-0.8, 0, 0, 5], [0, -0.9, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]]),
    "RAS": np.array([[0.8, 0, 0, 5], [0, 0.9, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]]),
    "SLP": np.array([[0, -0.8, 0, 5], [0, 0, -0.9, 6], [2, 0, 0, 7], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("stored", AFFINES)
def test_one_patient_is_prepared_alike_however_it_is_stored(tmp_path, stored):
    canonical = np.where(anatomy(30, np.random.default_rng(1)) == 2, 100.0, 0.0)  # z, y, x toward S, P, L
    voxels = canonical.transpose(2, 1, 0)
    if stored == "RAS":
        voxels = voxels[::-1, ::-1]
    if stored == "SLP":
        voxels = voxels.transpose(2, 0, 1)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), AFFINES[stored]), tmp_path / "i.nii")
    nib.save(nib.Nifti1Image((voxels > 50).astype(np.uint8), AFFINES[stored]), tmp_path / "m.nii")
    case = prepare(CaseFiles("one", tmp_path / "i.nii", tmp_path / "m.nii"), tmp_path / "prepared")
    assert case.image().shape == (40, 27, 24)  # 20 x 2, 30 x 0.9, 30 x 0.8 mm
    flat = np.array([[0, 0, -0.8, 0], [0, -0.9, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]])
    lps = np.diag([-1.0, -1, 1, 1]) @ flat
    assert np.allclose(case.image(), on_grid(canonical, lps), atol=0.1)
    assert np.array_equal(case.tumour(), on_grid(canonical > 50, lps) > 0.5)


def test_a_prepared_case_is_made_once(msd, tmp_path):
    files = find_cases(msd)[0]
    made = prepare(files, tmp_path)
    (tmp_path / files.name / "case.json").touch()
    stamp = (tmp_path / files.name / "image.npy").stat().st_mtime_ns
    again = prepare(files, tmp_path)
    assert again == made
    assert (tmp_path / files.name / "image.npy").stat().st_mtime_ns == stamp


def test_dicom_and_empty_masks_are_refused(tmp_path):
    (tmp_path / "image").mkdir()
    with pytest.raises(CaseUnusable, match="DICOM"):
        prepare(CaseFiles("one", tmp_path / "image", tmp_path / "m.nii"), tmp_path / "out")
    nib.save(nib.Nifti1Image(np.zeros((9, 8, 7), np.int16), np.eye(4)), tmp_path / "i.nii")
    with pytest.raises(CaseUnusable, match="no tumour"):
        prepare(CaseFiles("one", tmp_path / "i.nii", tmp_path / "i.nii"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"train": ["liver_0"]}, "no JSON"),
        ({"train": ["liver_0"], "val": ["liver_0"]}, "none in common"),
        ({"train": ["liver_0"], "val": ["spleen_9"]}, "spleen_9"),
        ([SPLIT], "fold 1"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(msd, tmp_path, document, words):
    (tmp_path / "split.json").write_text(json.dumps(document))
    with pytest.raises(SplitInvalid, match=words):
        read_split(tmp_path / "split.json", 1, find_cases(msd))


def test_a_fold_is_chosen(msd, tmp_path):
    other = {"train": ["liver_3"], "val": ["liver_0"]}
    (tmp_path / "split.json").write_text(json.dumps([SPLIT, other]))
    assert [case.name for case in read_split(tmp_path / "split.json", 1, find_cases(msd)).train] == ["liver_3"]


def case_of(organ: str | None, modality: str = "CT") -> PreparedCase:
    return PreparedCase(None, "one", modality, organ, has_organ_mask=False)  # type: ignore[arg-type]


def test_rules_are_the_papers_and_general_where_organs_differ():
    liver, kidney = PAPER_CT["liver"], PAPER_CT["kidney"]
    assert paper_rules([case_of("liver")]) == {"CT/liver": liver, "CT": liver} | {"MR": paper_rules([])["MR"]}
    both = paper_rules([case_of("liver"), case_of("kidney"), case_of("spleen"), case_of("liver", "MR")])
    assert (both["CT/liver"], both["CT/kidney"], both["CT"]) == (liver, kidney, ANY_CT)
    assert set(both) == {"CT/liver", "CT/kidney", "CT", "MR"}


def test_the_rate_falls_linearly_over_five_hundred_epochs():
    assert rate_share(0) == 1
    assert rate_share(250) == pytest.approx(0.505)
    assert rate_share(500) == rate_share(900) == pytest.approx(0.01)


def test_alignment_costs_little_where_features_agree_with_the_text_and_much_where_they_do_not():
    target = torch.zeros(1, 1, 16, 16, 16)
    target[..., 4:12, 4:12, 4:12] = 1
    text = torch.zeros(1, 2, 8)
    text[0, 0, 0] = text[0, 1, 1] = 1  # background, foreground
    coarse = torch.nn.functional.avg_pool3d(target, 2)[0, 0]
    agreeing = torch.stack([1 - coarse, coarse], -1)[None]
    agreeing = torch.nn.functional.pad(agreeing, (0, 6))
    good = alignment_loss([agreeing] * 4, text, target)
    bad = alignment_loss([agreeing] * 4, text.flip(1), target)
    assert float(good) < 0.6
    assert float(bad) > 8 * float(good)
    assert float(alignment_loss([agreeing] * 2, text, target)) == pytest.approx(float(good) / 2)


def test_every_stage_is_aligned(data, origin):
    begun = start(PLAN, origin)
    sample = validation_sample(data.val[0], data.recipe, np.random.default_rng(0))
    _, alignment = begun.objective(collate([sample]))
    alignment.backward()
    for adapter in begun.objective.tags.sam_encoder.alignment_adapters:
        assert adapter.fc1.weight.grad.abs().sum() > 0


def test_the_command_runs_and_goes_on(msd, origin, tmp_path):
    arguments = ["fine-tune", "--data", str(msd), "--split", str(msd / "split.json"), "--out", str(tmp_path),
                 "--config", "little", "--sam", str(origin.sam), "--clip", str(origin.clip),
                 "--accelerator", "cpu"]  # fmt: skip
    first = CliRunner().invoke(app, [*arguments, "--epochs", "1"])
    assert first.exit_code == 0, first.output
    assert first.output.strip().endswith("best.pt")
    second = CliRunner().invoke(app, [*arguments, "--epochs", "2", "--resume"])
    assert second.exit_code == 0, second.output
    assert [entry["epoch"] for entry in logged(tmp_path)] == [1, 2]
    further = ["fine-tune", "--data", str(msd), "--split", str(msd / "split.json"), "--out", str(tmp_path / "more"),
               "--config", "little", "--init", str(tmp_path / "best.pt"), "--epochs", "1",
               "--accelerator", "cpu"]  # fmt: skip
    third = CliRunner().invoke(app, further)
    assert third.exit_code == 0, third.output
    assert torch.load(tmp_path / "more" / "best.pt", weights_only=True)["meta"]["training"]["from"]["checkpoint"]


@pytest.mark.parametrize("origin_options", [[], ["--sam", "SAM"]], ids=["neither", "SAM without CLIP"])
def test_the_command_wants_weights_to_start_from(msd, origin, tmp_path, origin_options):
    options = [str(origin.sam) if option == "SAM" else option for option in origin_options]
    done = CliRunner().invoke(
        app,
        ["fine-tune", "--data", str(msd), "--split", str(msd / "split.json"), "--out", str(tmp_path / "o"), *options],
    )
    assert done.exit_code == 2
    assert not (tmp_path / "o").exists()
