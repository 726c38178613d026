"""Simulated prompts: contract arrays, clicks where they claim to be, errors that look like errors."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from contract.sizes import SMALL  # noqa: E402
from contract.tensors import (  # noqa: E402
    END_OF_TEXT,
    ENSEMBLE,
    LABEL_BACKGROUND,
    LABEL_BOX_MAX,
    LABEL_BOX_MIN,
    LABEL_FOREGROUND,
    LABEL_PAD,
    POINTS,
    network_specs,
)
from training.phantoms import make_phantom  # noqa: E402
from training.recipe import NOUNS  # noqa: E402
from training.scene import Phantom  # noqa: E402
from training.simulate import (  # noqa: E402
    CLOSE_UPS,
    TRUTH,
    Sample,
    assemble,
    background_click,
    corrected,
    correcting_clicks,
    cropped,
    distort,
    draw_clicks,
    foreground_click,
    halved,
    jittered_box,
    make_close_up,
    make_sample,
    named,
    noisy_organ,
    place,
    simulate,
    tokens,
    worst_error,
)
from training.tissues import TARGETS  # noqa: E402

SIZE = 48
HALF = SIZE // 2


@pytest.fixture(scope="module", name="samples")
def _samples() -> list[Sample]:
    return [make_sample(5, index, size=SIZE) for index in range(60)]


@pytest.fixture(scope="module", name="phantom")
def _phantom() -> Phantom:
    return make_phantom(2, size=SIZE, modality="CT")


@pytest.fixture(name="rng")
def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_sample_has_exactly_the_inputs_of_the_ensemble_and_a_target() -> None:
    inputs = {spec.name: spec for spec in network_specs(SMALL)[ENSEMBLE].inputs}
    assert {f.name for f in fields(Sample)} == {*inputs, *TRUTH}
    phantom = make_phantom(0, size=SMALL.roi, modality="MR")
    sample = assemble(phantom, phantom.tumour, clicks=[(np.array([30.0, 32, 34]), LABEL_FOREGROUND)])
    for name, spec in inputs.items():
        spec.check(getattr(sample, name)[None])


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    one, again, other = make_sample(1, 4, size=SIZE), make_sample(1, 4, size=SIZE), make_sample(2, 4, size=SIZE)
    for f in fields(Sample):
        assert np.array_equal(getattr(one, f.name), getattr(again, f.name))
    assert not np.array_equal(one.image, other.image)


def test_every_sample_says_which_tumour_is_meant(samples: list[Sample]) -> None:
    for sample in samples:
        localised = (sample.point_labels > LABEL_BACKGROUND).any() or sample.mask_prompt.any()
        assert localised or sample.use_text[0] == 1


def test_foreground_clicks_lie_in_the_tumour_and_background_clicks_outside(samples: list[Sample]) -> None:
    for sample in samples:
        index = np.rint(sample.point_coords).astype(int).clip(0, SIZE - 1)
        truth = sample.target[0][tuple(index.T)]
        assert (truth[sample.point_labels == LABEL_FOREGROUND] == 1).all()
        assert (truth[sample.point_labels == LABEL_BACKGROUND] == 0).all()


def test_clicks_are_not_always_in_the_middle_of_the_region(samples: list[Sample]) -> None:
    clicks = np.concatenate([s.point_coords[s.point_labels == LABEL_FOREGROUND] for s in samples])
    assert (np.abs(clicks - SIZE / 2).max(1) > SIZE / 8).mean() > 0.3


def test_samples_vary_in_their_prompts(samples: list[Sample]) -> None:
    for present in (
        [s.mask_prompt.any() for s in samples],
        [(s.point_labels == LABEL_BOX_MIN).any() for s in samples],
        [s.organ_mask.any() for s in samples],
        [s.use_text[0] == 1 for s in samples],
        [np.count_nonzero(s.point_labels == LABEL_FOREGROUND) > 1 for s in samples],
    ):
        assert 0 < sum(present) < len(samples)


def test_box_corners_stand_in_neighbouring_slots_and_smaller_comes_first(samples: list[Sample]) -> None:
    for sample in samples:
        for slot in np.flatnonzero(sample.point_labels == LABEL_BOX_MIN):
            assert sample.point_labels[slot + 1] == LABEL_BOX_MAX
            assert (sample.point_coords[slot] < sample.point_coords[slot + 1]).all()


def test_unused_slots_are_padding() -> None:
    coords, labels = place([(np.array([1.0, 2, 3]), LABEL_BACKGROUND)], np.array([[0.0, 1, 2], [5, 6, 7]]))
    assert labels[:4].tolist() == [LABEL_BACKGROUND, LABEL_BOX_MIN, LABEL_BOX_MAX, LABEL_PAD]
    assert coords[:3].tolist() == [[1, 2, 3], [0, 1, 2], [5, 6, 7]]
    assert len(labels) == POINTS
    assert (labels[3:] == LABEL_PAD).all()


def test_the_end_of_text_is_where_it_is_said_to_be() -> None:
    ids, ends = tokens("liver tumour")
    assert [ids[row, end] for row, end in enumerate(ends)] == [END_OF_TEXT, END_OF_TEXT]
    assert (ids[0, ends[0] + 1 :] == 0).all()
    assert not np.array_equal(tokens("liver tumour")[0], tokens("lung tumour")[0])


def test_the_first_click_is_in_the_tumour_and_there_are_as_many_as_asked(
    phantom: Phantom, rng: np.random.Generator
) -> None:
    clicks = draw_clicks(phantom, phantom.tumour, 5, rng)
    assert len(clicks) == 5
    assert clicks[0][1] == LABEL_FOREGROUND
    for _ in range(20):
        assert phantom.tumour[tuple(np.rint(foreground_click(phantom.tumour, rng)).astype(int))]
        assert not phantom.tumour[tuple(np.rint(background_click(phantom, phantom.tumour, rng)).astype(int))]


def test_correcting_clicks_lie_where_the_mask_is_wrong(rng: np.random.Generator) -> None:
    tumour, previous = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    tumour[2:5, 2:6, 3:6], previous[3:7, 2:6, 3:6] = True, True
    clicks = correcting_clicks(tumour, previous, 30, rng)
    for position, label in clicks:
        z = int(np.rint(position[0]))
        assert z == 2 if label == LABEL_FOREGROUND else z in (5, 6)
    assert {label for _, label in clicks} == {LABEL_FOREGROUND, LABEL_BACKGROUND}
    assert correcting_clicks(tumour, tumour, 3, rng) == []


def test_a_jittered_box_stays_close_to_the_bounding_box(rng: np.random.Generator) -> None:
    tumour = np.zeros((40, 40, 40), bool)
    tumour[10:20, 5:25, 8:12] = True
    for _ in range(20):
        box = jittered_box(tumour, rng)
        exact = np.array([[9.5, 4.5, 7.5], [19.5, 24.5, 11.5]])
        assert (np.abs(box - exact) <= 2 + 0.1 * np.array([10, 20, 4])).all()
        assert (box[0] < box[1]).all()


def test_a_distorted_mask_is_like_the_truth_but_wrong(phantom: Phantom, rng: np.random.Generator) -> None:
    masks = [distort(phantom.tumour, rng) for _ in range(10)]
    overlaps = [2 * (m & phantom.tumour).sum() / (m.sum() + phantom.tumour.sum()) for m in masks]
    assert 0.3 < np.mean(overlaps) < 0.98
    assert len({int(m.sum()) for m in masks}) > 5


def test_a_noisy_organ_is_roughly_the_organ(rng: np.random.Generator) -> None:
    phantom = make_phantom(0, size=SIZE, modality="CT", anatomy=False)  # a region of a tissue scene: a large one
    assert np.count_nonzero(phantom.organ) > 5000
    organ = noisy_organ(phantom, rng)
    assert organ.shape == phantom.organ.shape
    assert 2 * (organ & phantom.organ).sum() / (organ.sum() + phantom.organ.sum()) > 0.7


def test_the_next_click_lies_deep_in_the_largest_error(rng: np.random.Generator) -> None:
    target, found = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    target[2:9, 2:9, 2:9] = True
    found[14:17, 14:17, 14:17] = True
    for _ in range(10):
        at, label = worst_error(target, found, rng)
        assert label == LABEL_FOREGROUND
        assert target[tuple(at.astype(int))]
    found[2:9, 2:9, 2:9] = True
    at, label = worst_error(target, found, rng)
    assert label == LABEL_BACKGROUND
    assert (at >= 14).all()
    assert worst_error(target, target, rng) is None


def test_a_later_round_has_the_answer_as_previous_mask_and_one_click_more(
    phantom: Phantom, rng: np.random.Generator
) -> None:
    click = (foreground_click(phantom.tumour, rng), LABEL_FOREGROUND)
    sample = assemble(phantom, phantom.tumour, clicks=[click])
    found = distort(phantom.tumour, rng)
    later = corrected(sample, found, rng)
    assert np.array_equal(later.mask_prompt[0], halved(found))
    assert np.count_nonzero(later.point_labels != LABEL_PAD) == 2
    assert np.array_equal(later.point_coords[0], sample.point_coords[0])
    assert np.array_equal(later.image, sample.image)
    assert corrected(sample, phantom.tumour, rng) is sample  # nothing is wrong


def test_halving_gives_the_share_of_each_cell() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, :2] = True
    small = halved(mask)
    assert small.shape == (2, 2, 2)
    assert small[0, 0, 0] == 0.25
    assert small.sum() == 0.25


def test_beyond_the_scan_the_image_is_zero_after_normalisation(phantom: Phantom) -> None:
    inside = np.ones_like(phantom.tumour)
    inside[:5] = False
    sample = assemble(phantom, phantom.tumour & inside, inside=inside, finding="liver tumour", use_text=True)
    assert not sample.image[0, :5].any()
    assert sample.use_text[0] == 1
    assert sample.mask_prompt.shape == (1, HALF, HALF, HALF)


def test_the_text_map_has_the_named_organ_at_half_and_its_tumours_whole() -> None:
    anatomy = make_phantom(4, size=SIZE, modality="CT", anatomy=True)
    sick = named(anatomy, anatomy.organ_name)
    assert np.array_equal(sick == 1, anatomy.same_organ)
    assert np.array_equal(sick > 0, (anatomy.organs == 1 + TARGETS.index(anatomy.organ_name)) | anatomy.same_organ)
    for organ_name in anatomy.healthy:
        healthy = named(anatomy, organ_name)
        assert set(np.unique(healthy)) <= {0, 0.5}
        assert not (healthy[anatomy.organs != 1 + TARGETS.index(organ_name)]).any()


def test_only_anatomy_says_where_words_belong(samples: list[Sample]) -> None:
    known = [sample for sample in samples if sample.text_map.max() >= 0]
    assert 0 < len(known) < len(samples)
    alone = [sample for sample in samples if np.all(sample.point_labels == LABEL_PAD) and not sample.mask_prompt.any()]
    assert alone
    for sample in alone:
        assert sample.text_map.min() >= 0
        assert np.array_equal(sample.text_map[sample.target > 0], np.ones(int(sample.target.sum()), np.float32))


def test_of_a_tumour_of_any_size_only_clicks_are_told() -> None:
    phantom = make_phantom(2, size=SIZE, modality="CT", anatomy=False)
    for seed in range(30):
        sample = simulate(phantom, np.random.default_rng(seed), unsized=True)
        assert not np.isin(sample.point_labels, (LABEL_BOX_MIN, LABEL_BOX_MAX)).any()
        assert not sample.mask_prompt.any()
        assert (sample.point_labels == LABEL_FOREGROUND).any()


def test_close_ups_show_one_phantoms_tumour_from_several_places() -> None:
    drawn = [make_close_up(3, index, size=16, whole=SIZE) for index in range(CLOSE_UPS)]
    assert all(sample.target.any() and sample.image.shape == (1, 16, 16, 16) for sample in drawn)
    assert len({sample.image.tobytes() for sample in drawn}) > 1
    again = make_close_up(3, 5, size=16, whole=SIZE)
    assert np.array_equal(again.image, drawn[5].image)


def test_a_cropped_phantom_is_the_same_scan_where_it_was_cut() -> None:
    whole = make_phantom(4, size=SIZE, anatomy=True)
    part = cropped(whole, np.array([3, 5, 7]), 16)
    for name in ("image", "tumour", "distractors", "organs"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)[3:19, 5:21, 7:23])
    assert not part.anatomy


def test_without_anatomy_a_text_that_counts_may_name_any_organ_and_what_else_is_told_says_where() -> None:
    phantom = make_phantom(2, size=SIZE, modality="CT", anatomy=False)
    texts = {f"{target} {noun}": tokens(f"{target} {noun}")[0] for target in TARGETS for noun in NOUNS}
    named_organs = set()
    for seed in range(60):
        sample = simulate(phantom, np.random.default_rng(seed), only="texts")
        assert sample.use_text[0] == 1
        assert np.any(sample.point_labels != LABEL_PAD) or sample.mask_prompt.any()
        assert sample.text_map.max() == -1
        named_organs |= {
            text.rpartition(" ")[0] for text, ids in texts.items() if np.array_equal(ids, sample.input_ids)
        }
    assert named_organs == set(TARGETS)
