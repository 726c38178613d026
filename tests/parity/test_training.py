"""The training loop on a tiny configuration: it learns, resumes to the same weights, and feeds the export."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from contract.intensity import IntensityRule  # noqa: E402
from contract.sizes import CONFIGURATIONS, SMALL  # noqa: E402
from contract.tensors import LABEL_BOX_MIN, LABEL_FOREGROUND  # noqa: E402
from export.checkpoint import save_checkpoint  # noqa: E402
from training.__main__ import average  # noqa: E402
from training.loop import (  # noqa: E402
    Plan,
    Run,
    advance,
    collate,
    inputs_of,
    later_round,
    restore,
    samples,
    schedule,
    start,
    train,
)
from training.losses import alignment_loss, mask_loss, missed_loss, soft_dice_loss  # noqa: E402
from training.recipe import INTENSITY  # noqa: E402

TINY = replace(
    SMALL, name="tiny", roi=32, tokens=4, width=32, depth=4, heads=1, window=4, adapter=16,
    neck=16, aggregation=8, queries=2, prompt_mlp=32, text_width=16, text_depth=1,
)  # fmt: skip
PLAN = Plan(config="tiny", roi=32, batch=2, rate=3e-3, seed=4, steps=20)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(CONFIGURATIONS, "tiny", TINY)
    torch.set_num_threads(1)
    torch.manual_seed(0)


def steps(run: Run, last: int) -> None:
    while run.step < last:
        advance(run, PLAN, PLAN.progress(run.step, 0), samples(PLAN, 0, run.step))


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    whole = start(PLAN, None)
    torch.manual_seed(0)
    halted = start(PLAN, None)
    steps(whole, 4)
    steps(halted, 2)
    save_checkpoint(halted.state(PLAN), tmp_path / "last.pt")
    torch.manual_seed(99)  # the resumed process draws other initial weights, which must not matter
    resumed = restore(tmp_path / "last.pt", PLAN)
    steps(resumed, 4)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
        assert torch.equal(whole.average[name], resumed.average[name]), name


def test_a_first_stage_learns_from_close_ups_smaller_than_a_window():
    plan = replace(PLAN, config="small", roi=32, whole=48)
    run, drawn = start(plan, None), samples(plan, 0, 0)
    assert all(sample.image.shape == (1, 32, 32, 32) for sample in drawn)
    assert all(sample.text_map.max() == -1 for sample in drawn)  # nothing is named
    assert np.isfinite(advance(run, plan, 0.2, drawn)["loss"])


def has_box(sample):
    return (sample.point_labels == LABEL_BOX_MIN).any()


def has_text(sample):
    return sample.use_text[0] == 1


@pytest.mark.parametrize(("only", "has"), [("boxes", has_box), ("texts", has_text)])
def test_what_is_learned_of_one_prompt_only_leaves_other_answers_as_they_are_to_the_bit(only, has):
    plan = replace(PLAN, only=only)
    run = start(plan, None)
    torch.nn.init.normal_(run.model.fusion_decoder.detail.weight, std=0.05)  # at zero it hides the pyramid
    with_it = samples(plan, 0, 0)
    assert all(has(sample) for sample in with_it)
    clicked = next(
        sample
        for number in range(20)
        for sample in samples(PLAN, 0, number)
        if not has(sample) and (sample.point_labels == LABEL_FOREGROUND).any()
    )

    def answer(drawn):
        with torch.no_grad():
            return run.model(**inputs_of(collate(drawn)))[0]

    before = answer([clicked]), answer(with_it)
    for _ in range(3):
        advance(run, plan, 0.2, with_it)
    assert torch.equal(answer([clicked]), before[0])
    assert not torch.allclose(answer(with_it), before[1], atol=1e-3)


def test_the_loss_falls_on_a_batch_seen_again_and_again():
    run, same = start(PLAN, None), samples(PLAN, 0, 0)
    losses = [advance(run, PLAN, 0.2, same)["loss"] for _ in range(20)]
    assert losses[-1] < 0.85 * losses[0]


def test_training_writes_a_checkpoint_that_the_export_can_read_and_a_log(tmp_path):
    checkpoint = train(replace(PLAN, steps=2), tmp_path, init=None, resume=True)
    state = torch.load(checkpoint, weights_only=True)
    assert state["config"] == "tiny"
    assert {key: IntensityRule(**rule) for key, rule in state["meta"]["intensity"].items()} == INTENSITY
    assert state["meta"]["training"]["steps"] == 2
    assert state["meta"]["training"]["after"] is None
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2]

    second = start(PLAN, checkpoint)
    assert second.after == state["meta"]["training"]
    assert torch.equal(second.model.fusion_decoder.coarse.weight, state["state_dict"]["fusion_decoder.coarse.weight"])


def test_an_average_lies_between_two_checkpoints_and_says_so(tmp_path):
    run = start(PLAN, None)
    for name, last in (("one", 1), ("other", 2)):
        steps(run, last)
        save_checkpoint(run.state(PLAN), tmp_path / f"{name}.pt")
    average(tmp_path / "one.pt", tmp_path / "other.pt", out=tmp_path / "average.pt", share=0.25)
    one, other, between = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "other", "average")
    )
    for name, value in between["state_dict"].items():
        expected = 0.75 * one["state_dict"][name] + 0.25 * other["state_dict"][name]
        assert torch.allclose(value, expected, atol=1e-6), name
    training = between["meta"]["training"]
    assert (training["steps"], training["share"], training["averaged_with"]["steps"]) == (2, 0.25, 1)
    start(PLAN, tmp_path / "average.pt")  # as `run --init` does


def test_workers_share_each_steps_samples_without_overlap():
    alone = samples(PLAN, 0, 3)
    shared = [samples(replace(PLAN, workers=2), rank, 3) for rank in (0, 1)]
    assert [len(share) for share in shared] == [1, 1]
    for expected, (found,) in zip(alone, shared, strict=True):
        assert np.array_equal(expected.image, found.image)


@pytest.mark.slow
def test_two_workers_end_with_the_weights_of_one(tmp_path):
    """The mean of the gradients of two halves of a batch is the gradient of the batch, up to rounding."""
    config = replace(PLAN, config="small", roi=64, steps=2)  # a spawned worker knows the shipped configurations only
    one = torch.load(train(config, tmp_path / "one", init=None, resume=False), weights_only=True)
    two = torch.load(train(replace(config, workers=2), tmp_path / "two", init=None, resume=False), weights_only=True)
    for name, value in one["state_dict"].items():
        assert torch.allclose(value, two["state_dict"][name], atol=3e-3), name


def test_some_steps_learn_from_a_later_round():
    run, drawn = start(PLAN, None), samples(PLAN, 0, 0)
    changed = [
        any(a is not b for a, b in zip(drawn, later_round(run.model, drawn, n, PLAN), strict=True)) for n in range(20)
    ]
    assert 0 < sum(changed) < 20


def test_the_learning_rate_warms_up_and_then_falls_to_its_end():
    rates = [schedule(progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_progress_counts_steps_or_minutes():
    assert replace(PLAN, steps=10).progress(5, 99.0) == 0.5
    assert replace(PLAN, steps=None, minutes=10.0).progress(999, 2.5) == 0.25
    assert replace(PLAN, steps=None, minutes=10.0).progress(0, 11.0) == 1.0


def test_a_perfect_mask_costs_nothing_and_the_opposite_much():
    target = torch.zeros(1, 1, 8, 8, 8)
    target[..., 2:6, 2:6, 2:6] = 1
    certain = 40 * (2 * target - 1)
    assert float(mask_loss(certain, target)) == pytest.approx(0, abs=1e-4)
    assert float(soft_dice_loss(-certain, target)) > 0.9


def test_alignment_wants_the_tumour_likely_its_organ_possible_and_the_rest_out():
    text_map = torch.zeros(2, 1, 8, 8, 8)
    text_map[0, 0, :4, :4, :4] = 1
    text_map[0, 0, :4, :4, 4:] = 0.5
    similarity = torch.full((2, 1, 2, 2, 2), -9.0)
    similarity[0, 0, 0, 0] = torch.tensor([9.0, 0.0])
    text_map[1] = -1  # words that mean nothing certain
    right = alignment_loss(similarity, text_map)
    similarity[1] = 9.0
    assert torch.equal(right, alignment_loss(similarity, text_map))
    for cell, value in (((0, 0, 0, 0, 0), -1.0), ((0, 0, 0, 0, 1), 3.0), ((0, 0, 1, 1, 1), 3.0)):
        wrong = similarity.clone()
        wrong[cell] = value
        assert float(alignment_loss(wrong, text_map)) > float(right) + 0.05
    assert float(alignment_loss(similarity, torch.full_like(text_map, -1))) == 0


def test_a_tumour_that_only_a_text_names_costs_when_it_is_missed():
    target = torch.zeros(2, 1, 8, 8, 8)
    target[:, :, 2:4, 2:4, 2:4] = 1
    silent = torch.full_like(target, -8.0)
    assert float(missed_loss(silent, target, torch.tensor([[1.0], [0.0]]))) == pytest.approx(4.0, abs=0.01)
    assert float(missed_loss(silent, target, torch.zeros(2, 1))) == 0
    assert float(missed_loss(silent, torch.zeros_like(target), torch.ones(2, 1))) == 0
