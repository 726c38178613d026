"""The embedded engine on the shipped bundle."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from contract.bundle import FILE_NAME, Bundle, load_bundle
from contract.tensors import CLIP_TEXT_EMBEDDER, SAM_ENCODER, network_specs
from service.domain.prompts import PlacedPrompts
from service.errors import ModelBusy, ModelContractBroken, ModelNotReady
from service.inference.embedded import EmbeddedEngine
from tests.conftest import require

SHIPPED = Path(os.environ.get("TAGS_BUNDLE_DIR", Path(__file__).resolve().parents[2] / "model_repository"))
SIDE = 64


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    require((SHIPPED / FILE_NAME).is_file(), "the shipped bundle is not in model_repository/")
    return load_bundle(SHIPPED)


@pytest.fixture
async def engine(bundle):
    engine = EmbeddedEngine(bundle, threads=2, max_waiting=2)
    yield engine
    await engine.close()


def region() -> tuple[np.ndarray, np.ndarray]:
    """A noisy region with a bright ball of radius 6 at (20, 32, 40), and an organ mask: what has x >= 24."""
    z, y, x = np.ogrid[:SIDE, :SIDE, :SIDE]
    ball = (z - 20) ** 2 + (y - 32) ** 2 + (x - 40) ** 2 < 6**2
    noise = np.random.default_rng(0).normal(scale=0.3, size=ball.shape)
    organ_mask = np.zeros(ball.shape, np.float32)
    organ_mask[:, :, 24:] = 1
    return (noise + 2 * ball).astype(np.float32), organ_mask


def click(*, finding: str = "liver tumour", at_zyx: tuple[float, float, float] = (20, 32, 40)) -> PlacedPrompts:
    point_coords, point_labels = np.zeros((32, 3), np.float32), np.full(32, -1, np.int32)
    point_coords[0], point_labels[0] = at_zyx, 1
    phrases = (f"a scan without {finding}.", f"a scan of a {finding}.")
    return PlacedPrompts(point_coords, point_labels, np.zeros((1, 32, 32, 32), np.float32), 1.0, phrases)


async def longest_pause(task: asyncio.Task) -> float:
    """Longest time for which the event loop did not come round while `task` ran, as a share of the task's time.

    1 when something blocks the loop throughout; a share holds on a slow machine, too.
    """
    started = before = time.perf_counter()
    longest = 0.0
    while not task.done():
        await asyncio.sleep(0.01)
        longest, before = max(longest, time.perf_counter() - before), time.perf_counter()
    return longest / (before - started)


async def test_every_answer_has_the_shape_that_the_seam_promises(engine):
    embeddings = await engine.encode(*region())
    assert list(embeddings.tensors) == [t.name for t in network_specs(engine.bundle.sizes)[SAM_ENCODER].outputs]
    logits = await engine.decode(embeddings, click())
    assert (logits.shape, logits.dtype) == ((SIDE, SIDE, SIDE), np.float32)
    assert np.isfinite(logits).all()


async def test_the_one_call_chain_gives_what_the_three_calls_give(engine):
    composed = await engine.decode(await engine.encode(*region()), click())
    assert np.array_equal(await engine.segment(*region(), click()), composed)


async def test_one_encoding_serves_several_clicks(engine):
    embeddings = await engine.encode(*region())
    here, there = await engine.decode(embeddings, click()), await engine.decode(embeddings, click(at_zyx=(90, 20, 30)))
    assert not np.array_equal(here, there)
    assert np.array_equal(here, await engine.decode(embeddings, click()))


async def test_text_features_are_computed_once_per_pair_of_phrases(engine):
    first = await engine.embed_text(click().phrases)
    assert (first.shape, first.dtype) == ((2, engine.bundle.sizes.width), np.float32)
    assert await engine.embed_text(click().phrases) is first
    assert not np.array_equal(await engine.embed_text(click(finding="kidney tumour").phrases), first)


async def test_the_event_loop_goes_on_while_the_networks_run(engine):
    task = asyncio.create_task(engine.segment(*region(), click()))
    assert await longest_pause(task) < 0.5
    await task


async def test_the_canary_does_not_wait_behind_the_heavy_networks(engine):
    heavy = asyncio.gather(*(engine.encode(*region()) for _ in range(3)))  # one runs, two wait
    await asyncio.sleep(0.01)
    await engine.check()
    assert not heavy.done()
    await heavy


async def test_more_calls_than_may_wait_are_refused_and_the_others_answered(engine):
    calls = (engine.encode(*region()) for _ in range(5))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    busy = [answer for answer in answers if isinstance(answer, ModelBusy)]
    assert len(busy) == 2  # one runs, two wait
    assert busy[0].retry_after_s == 5
    await engine.encode(*region())


async def test_a_cancelled_call_makes_way(engine):
    started = time.perf_counter()
    await engine.encode(*region())
    whole_s = time.perf_counter() - started
    cancelled = [asyncio.create_task(engine.encode(*region())) for _ in range(3)]
    await asyncio.sleep(0.02)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    assert all(task.cancelled() for task in cancelled)
    started = time.perf_counter()
    await engine.encode(*region())
    assert time.perf_counter() - started < 2.5 * whole_s  # not behind three whole encodings


async def test_an_image_of_another_dtype_or_size_breaks_the_contract(engine):
    image, organ_mask = region()
    with pytest.raises(ModelContractBroken, match="image: expected float32"):
        await engine.encode(image.astype(np.float64), organ_mask)
    with pytest.raises(ModelContractBroken, match="organ_mask"):
        await engine.encode(image, organ_mask[:32])


async def test_a_closed_engine_says_that_it_is_not_ready(bundle):
    engine = EmbeddedEngine(bundle, threads=1, max_waiting=0)
    await engine.close()
    with pytest.raises(ModelNotReady):
        await engine.check()


@pytest.fixture
def copy_of(bundle, tmp_path):
    """The bundle in a directory of its own, to be damaged after it was verified."""
    shutil.copytree(bundle.directory, tmp_path / "bundle")
    return dataclasses.replace(bundle, directory=tmp_path / "bundle")


def test_a_missing_network_is_not_ready(copy_of):
    copy_of.onnx_path(SAM_ENCODER).unlink()
    with pytest.raises(ModelNotReady, match="sam_encoder could not be loaded"):
        EmbeddedEngine(copy_of, threads=1, max_waiting=0)


def test_a_cut_off_network_breaks_the_contract(copy_of):
    path = copy_of.onnx_path(SAM_ENCODER)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelContractBroken, match="sam_encoder could not be loaded"):
        EmbeddedEngine(copy_of, threads=1, max_waiting=0)


def test_a_network_with_other_tensors_breaks_the_contract(copy_of):
    shutil.copy(copy_of.onnx_path(CLIP_TEXT_EMBEDDER), copy_of.onnx_path(SAM_ENCODER))
    with pytest.raises(ModelContractBroken, match="sam_encoder: the engine has no image"):
        EmbeddedEngine(copy_of, threads=1, max_waiting=0)
