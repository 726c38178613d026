"""The use case with an analytic engine: the right blob in the right place, on every orientation, from every prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contract.grid import GridRule, fixed_grid
from service.domain.extension import MAX_ROIS
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.domain.roi import box_corners
from service.domain.zoom import MAX_LOOKS, STEP
from service.errors import (
    MaskMismatch,
    ModelBusy,
    NoPrompts,
    PromptOutsideVolume,
    TooManyPrompts,
    UnsupportedModality,
)
from service.segment import segment
from service.telemetry.stages import Stages
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine
from tests.fakes.source import SIGNED_PERMUTATIONS, TUMOUR, FakeSource, World, dice, ellipsoids, grid, sampled

AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
TURN = Rotation.from_euler("zyx", [15, 25, -10], degrees=True).as_matrix()
TILT = np.array([[0, 0, 1], [0, np.cos(0.35), 0], [1, -np.sin(0.35), 0]])
# Asymmetric on every axis: a body with a bump, off the scan's centre, and a look-alike where a mirror image would be.
LESION = ellipsoids(((22, -14, 9), (12, 8, 9)), ((30, -8, 14), (7, 6, 5)))
LESION_AND_TWIN = ellipsoids(
    ((22, -14, 9), (12, 8, 9)), ((30, -8, 14), (7, 6, 5)), ((-22, 14, -9), (12, 8, 9))
)  # fmt: skip
CLICK = (22.0, -14.0, 9.0)
ADAPTIVE = replace(FAKE_BUNDLE, grid=GridRule(1.5, 0.5, 6.0, 3.0, 6.5, fill=0.6))


def click(*points: tuple[float, float, float], **more: object) -> Prompts:
    """Foreground clicks, LPS mm."""
    return Prompts(points_lps_mm=np.array(points, float), labels=np.ones(len(points), np.int32), **more)


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Prompts:
    return Prompts(boxes_lps_mm=box_corners(low, high)[np.newaxis])


def truth(source: FakeSource, world: World = LESION) -> np.ndarray:
    return sampled(source.geometry, world) == TUMOUR


async def run(source: FakeSource, prompts: Prompts, engine: FakeEngine | None = None) -> Mask:
    return await segment(source, prompts, engine or FakeEngine(), Stages())


def axial(world: World, shape=(40, 110, 120), spacing=(3.0, 0.9, 0.8), **more) -> FakeSource:
    return FakeSource(grid(AXIAL, spacing, shape), world, **more)


ORIENTATIONS = [
    *SIGNED_PERMUTATIONS,
    *(TURN @ p for p in SIGNED_PERMUTATIONS[::7]),
    TILT,
    TILT * (-1, 1, -1),
    TURN @ TILT,
]


@pytest.mark.parametrize("directions", ORIENTATIONS)
async def test_a_click_finds_the_lesion_where_it_is_on_every_orientation(directions):
    source = FakeSource(grid(directions, (2.5, 0.9, 1.2), (44, 110, 90)), LESION_AND_TWIN)
    engine = FakeEngine()
    mask = await run(source, click(CLICK), engine)
    assert mask.geometry is source.geometry
    assert dice(mask.voxels, truth(source)) > 0.93
    assert engine.calls == ["encode", "embed_text", "decode"]
    assert 0.9 < mask.score <= 1


async def test_a_flipped_or_swapped_volume_would_be_noticed():
    source = FakeSource(grid(AXIAL, (1, 1, 1), (100, 100, 100)), LESION)
    voxels, expected = (await run(source, click(CLICK))).voxels, truth(source)
    for axis in range(3):
        assert dice(np.flip(voxels, axis), expected) < 0.2
    for axes in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        assert dice(voxels.transpose(axes), expected) < 0.2


@pytest.mark.parametrize("directions", SIGNED_PERMUTATIONS[::5])
async def test_the_network_sees_the_same_image_whatever_the_acquisition_plane(directions):
    seen = []
    for axes, spacing in ((AXIAL, (2, 2, 2)), (directions, (2.4, 1.8, 2))):
        engine = FakeEngine()
        await run(FakeSource(grid(axes, spacing, (70, 75, 80)), LESION), click(CLICK), engine)
        seen.append(engine.images[0] > 0.6)
    assert dice(seen[0], seen[1]) > 0.8


async def test_the_click_lies_head_posterior_left_in_the_region():
    engine = FakeEngine()
    prompts = click((0, 0, 0), (6, 10, 20))  # the second further left, posterior, toward the head
    await run(FakeSource(grid(SIGNED_PERMUTATIONS[13], (3, 2, 2), (50, 60, 70)), LESION), prompts, engine)
    first, second = engine.placed[0].point_coords[:2]
    assert second - first == pytest.approx([10, 5, 3])  # 20, 10, 6 mm of z, y, x in voxels of 2 mm


async def test_only_the_slices_around_the_prompt_are_read_and_each_once():
    source = axial(LESION, shape=(200, 60, 70), spacing=(2.0, 2.0, 2.0))
    await run(source, click(CLICK))
    # the ROI spans 128 mm around z = 9 mm: 64 slices of 2 mm, and one on each side to interpolate
    assert len(source.read_slices) == len(set(source.read_slices)) <= 67
    centre = source.geometry.to_index(np.array([CLICK]))[0, 0]
    assert min(source.read_slices) >= centre - 34
    assert max(source.read_slices) <= centre + 34


async def test_a_box_finds_what_it_holds():
    source = axial(LESION_AND_TWIN)
    engine = FakeEngine()
    mask = await run(source, box((8, -24, -2), (40, 0, 22)), engine)
    assert dice(mask.voxels, truth(source)) > 0.93
    assert engine.placed[0].point_labels[:3].tolist() == [2, 3, -1]
    low, high = engine.placed[0].point_coords[:2]
    assert high - low == pytest.approx([12, 12, 16])  # 24, 24, 32 mm of z, y, x in voxels of 2 mm


async def test_a_previous_mask_alone_is_a_prompt_and_picks_its_own_lesion():
    source = axial(LESION_AND_TWIN)
    previous = sampled(source.geometry, ellipsoids((CLICK, (6, 5, 5)))) == TUMOUR
    mask = await run(source, Prompts(mask=previous))
    assert dice(mask.voxels, truth(source)) > 0.93


async def test_two_far_lesions_take_two_regions_and_give_one_mask():
    world = ellipsoids(((0, 0, -120), (10, 9, 8)), ((20, -10, 130), (9, 12, 8)))
    source = axial(world, shape=(160, 60, 70), spacing=(2.0, 2.0, 2.0))
    engine = FakeEngine()
    mask = await run(source, click((0, 0, -120), (20, -10, 130)), engine)
    assert engine.calls.count("encode") == 2
    assert dice(mask.voxels, truth(source, world)) > 0.93


async def test_a_tumour_longer_than_the_region_is_followed_to_its_ends():
    world = ellipsoids(((5, -4, 10), (12, 14, 150)))  # 300 mm long, clicked near one end
    source = axial(world, shape=(130, 50, 60), spacing=(2.5, 1.5, 1.5))
    engine = FakeEngine()
    mask = await run(source, click((5, -4, -110)), engine)
    assert dice(mask.voxels, truth(source, world)) > 0.95
    assert mask.complete
    assert 4 <= engine.calls.count("encode") <= 7
    assert engine.placed[1].mask_prompt.any()  # what was found so far is the neighbour's previous mask
    assert len(set(source.read_slices)) <= 130


async def test_a_tumour_that_leaves_by_several_faces_is_followed_across_each():
    world = ellipsoids(((0, 0, 0), (85, 80, 75)))
    source = axial(world, shape=(60, 80, 90), spacing=(3.0, 2.5, 2.5))
    mask = await run(source, click((0, 0, 0)))
    assert dice(mask.voxels, truth(source, world)) > 0.95
    assert mask.complete


async def test_the_end_of_the_scan_is_no_reason_to_go_on():
    world = ellipsoids(((0, 0, 0), (20, 20, 500)))  # through both ends of a thin slab
    source = axial(world, shape=(20, 80, 90), spacing=(3.0, 1.5, 1.5))
    engine = FakeEngine()
    mask = await run(source, click((0, 0, 0)), engine)
    assert engine.calls.count("encode") == 1
    assert dice(mask.voxels, truth(source, world)) > 0.95


async def test_a_look_alike_at_the_border_brings_in_no_neighbour():
    world = ellipsoids((CLICK, (9, 8, 7)), ((22, 50, 9), (10, 10, 10)))  # the second reaches out of the ROI
    engine = FakeEngine(threshold=0.6)
    engine_sees_all = replace(click(CLICK), text="tumour")
    mask = await run(FakeSource(grid(AXIAL, (2, 2, 2), (75, 100, 75)), world), engine_sees_all, engine)
    assert engine.calls.count("encode") == 1
    assert mask.voxels.any()


async def test_growth_stops_at_a_named_limit_and_says_so():
    source = FakeSource(grid(AXIAL, (10, 10, 10), (60, 60, 60)), ellipsoids(((0, 0, 0), (300, 300, 300))))
    engine = FakeEngine()
    mask = await run(source, click((0, 0, 0)), engine)
    assert engine.calls.count("encode") == MAX_ROIS
    assert not mask.complete
    assert mask.voxels.any()


async def test_a_text_alone_finds_a_lesion_in_a_small_scan_without_a_second_look():
    source = axial(LESION)
    engine = FakeEngine()
    mask = await run(source, Prompts(text="liver tumour"), engine)
    assert dice(mask.voxels, truth(source)) > 0.93
    assert engine.placed[0].use_text == 1.0
    assert engine.placed[0].phrases == ("a scan without liver tumour.", "a scan of a liver tumour.")


async def test_a_text_alone_searches_a_large_scan_coarsely_and_then_looks_closely():
    world = ellipsoids(((80, -60, 170), (20, 18, 16)), ((-90, 70, -150), (15, 19, 20)))
    source = axial(world, shape=(96, 66, 72), spacing=(5.0, 5.0, 5.0))
    engine = FakeEngine(ADAPTIVE)
    mask = await run(source, Prompts(text="tumour"), engine)
    assert dice(mask.voxels, truth(source, world)) > 0.9
    coarse = [placed for placed in engine.placed if not placed.mask_prompt.any()]
    fine = engine.placed[len(coarse) :]
    assert 1 <= len(coarse) <= 12
    assert fine
    assert all(placed.mask_prompt.any() and placed.use_text == 1 for placed in fine)


async def test_a_small_tumour_is_looked_at_more_closely_until_it_fills_its_region():
    world = ellipsoids((CLICK, (7, 6, 5)))
    source = axial(world, shape=(60, 100, 100), spacing=(1.0, 1.0, 1.0))
    engine = FakeEngine(ADAPTIVE)
    mask = await run(source, click(CLICK), engine)
    assert dice(mask.voxels, truth(source, world)) > 0.93
    assert engine.calls.count("encode") == 3  # the usual distance, a step closer, then as its size asks
    shares = [np.ptp(np.nonzero(image > 0.6), axis=1).max() / 64 for image in engine.images]
    assert shares[0] < 0.2
    assert max(shares) == shares[-1]
    assert shares[-1] == pytest.approx(14 / 32, abs=0.06)  # 14 mm at half of the source's spacing, which is the closest


async def test_a_large_tumour_is_looked_at_from_further_away_and_slices_are_decoded_once():
    world = ellipsoids(((0, 0, 0), (85, 80, 75)))
    source = axial(world, shape=(70, 100, 100), spacing=(3.0, 2.5, 2.5))
    engine = FakeEngine(ADAPTIVE)
    mask = await run(source, click((30, 20, -20)), engine)
    assert dice(mask.voxels, truth(source, world)) > 0.95
    assert mask.complete
    assert engine.calls.count("encode") <= MAX_LOOKS
    assert len(source.read_slices) == len(set(source.read_slices))


class BallEngine(FakeEngine):
    """Finds a ball of `RADIUS` voxels in the middle at every spacing, as unsure networks do; sure of it but once."""

    RADIUS = 12

    def __init__(self, *, sure_at: int, logit: float = 4.0) -> None:
        super().__init__(ADAPTIVE)
        self.sure_at, self.logit = sure_at, logit

    async def decode(self, embeddings, placed):
        inside = sum((axis - 31.5) ** 2 for axis in np.ogrid[:64, :64, :64]) < self.RADIUS**2
        sure = self.calls.count("decode") == self.sure_at
        await super().decode(embeddings, placed)
        return np.where(inside, self.logit if sure else 0.5, -4.0).astype(np.float32)


@pytest.mark.parametrize(("sure_at", "factor"), [(0, 1.0), (1, STEP), (2, 1 / STEP)])
async def test_the_most_certain_of_the_first_looks_at_a_click_counts(sure_at, factor):
    source = axial(lambda points: np.full(len(points), 40.0), shape=(80, 90, 90), spacing=(2.0, 2.0, 2.0))
    engine = BallEngine(sure_at=sure_at)
    mask = await run(source, click((0, 0, 0)), engine)
    assert engine.calls.count("decode") == 3
    radius_mm = 2.0 * (mask.voxels.sum() * 3 / (4 * np.pi)) ** (1 / 3)
    assert radius_mm == pytest.approx(BallEngine.RADIUS * ADAPTIVE.grid.first_mm * factor, rel=0.08)


@pytest.mark.parametrize(("logit", "found"), [(4.0, True), (2.0, False)])
async def test_a_search_for_a_text_proposes_only_what_the_networks_are_sure_of(logit, found):
    source = axial(lambda points: np.full(len(points), 40.0), shape=(80, 90, 90), spacing=(2.0, 2.0, 2.0))
    mask = await run(source, Prompts(text="tumour"), BallEngine(sure_at=0, logit=logit))
    assert mask.voxels.any() == found


async def test_the_box_sets_the_spacing():
    source = axial(LESION_AND_TWIN)
    engine = FakeEngine(ADAPTIVE)
    mask = await run(source, box((8, -24, -2), (40, 0, 22)), engine)
    assert dice(mask.voxels, truth(source)) > 0.93
    low, high = engine.placed[0].point_coords[:2]
    assert np.max(high - low) == pytest.approx(0.6 * 64, abs=0.01)  # 32 mm, the longest side
    assert engine.calls.count("encode") == 1


async def test_an_organ_mask_limits_what_a_text_may_find():
    source = axial(LESION_AND_TWIN)
    organ = sampled(source.geometry, ellipsoids(((20, -14, 9), (30, 25, 25)))) == TUMOUR
    engine = FakeEngine()
    mask = await run(source, Prompts(text="tumour", organ_mask=organ), engine)
    assert dice(mask.voxels, truth(source)) > 0.93
    assert engine.organ_masks[0].any()


async def test_nothing_found_is_an_empty_mask():
    source = axial(lambda points: np.full(len(points), 40.0))
    for prompts in (click(CLICK), Prompts(text="tumour"), box((-5, -5, -5), (5, 5, 5))):
        mask = await run(source, prompts)
        assert (mask.voxels.any(), mask.score, mask.complete) == (False, 0.0, True)


async def test_a_background_click_takes_a_lesion_away():
    source = axial(LESION_AND_TWIN)
    prompts = replace(
        click(CLICK, (-22.0, 14.0, -9.0)), labels=np.array([1, 0], np.int32), text="tumour"
    )  # fmt: skip
    mask = await run(source, prompts)
    assert dice(mask.voxels, truth(source)) > 0.93


async def test_every_stage_is_timed():
    stages = Stages()
    await segment(axial(LESION), click(CLICK), FakeEngine(), stages)
    assert set(stages.seconds) == {"prepare", "pixels", "encode", "text", "decode", "restore"}


async def test_an_mr_series_is_normalised_by_its_own_percentiles():
    large = ellipsoids((CLICK, (22, 25, 20)))
    source = axial(lambda points: 1000 + points @ [0.1, 0.2, 0.3] + 3 * large(points), modality="MR")
    mask = await run(source, click(CLICK), FakeEngine(threshold=2.0))
    assert dice(mask.voxels, truth(source, large)) > 0.9


@pytest.mark.parametrize(
    ("prompts", "error", "says"),
    [
        (Prompts(), NoPrompts, "add a text"),
        (replace(click(CLICK), labels=np.array([0])), NoPrompts, "label 1"),
        (
            click(CLICK, (0, 0, 900)),
            PromptOutsideVolume,
            "point 2 .* columns 0 to 119, rows 0 to 109 and slices 0 to 39",
        ),
        (box((200, 0, 0), (210, 5, 5)), PromptOutsideVolume, "box 1 "),
        (click(*[CLICK] * 33), TooManyPrompts, "33 slots"),
        (Prompts(mask=np.ones((2, 3, 4), bool)), MaskMismatch, "mask has"),
    ],
)
async def test_a_prompt_that_cannot_be_placed_is_refused_before_a_slice_is_read(prompts, error, says):
    source = axial(LESION)
    with pytest.raises(error, match=says):
        await run(source, prompts)
    assert source.read_slices == []


async def test_a_modality_without_a_rule_is_refused():
    with pytest.raises(UnsupportedModality, match="CT, MR"):
        await run(axial(LESION, modality="PT"), click(CLICK))


async def test_the_engines_refusal_comes_through():
    with pytest.raises(ModelBusy):
        await run(axial(LESION), click(CLICK), FakeEngine(error=ModelBusy("full")))


async def test_the_bundle_decides_size_and_spacing():
    source = axial(LESION_AND_TWIN)
    engine = FakeEngine(replace(FAKE_BUNDLE, grid=fixed_grid(1.6)))
    mask = await run(source, click(CLICK), engine)
    assert engine.images[0].shape == (64, 64, 64)
    # the lesion and its twin fill as much of space on either grid: 4.096 against 2.16 cubic mm a voxel
    filled = np.count_nonzero(engine.images[0] > 0.6) * 1.6**3
    assert filled == pytest.approx(np.count_nonzero(truth(source, LESION_AND_TWIN)) * 2.16, rel=0.1)
    assert dice(mask.voxels, truth(source)) > 0.93
