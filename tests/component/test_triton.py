"""The Triton engine against a real `tritonserver` on this machine: the same answers, and what happens when it fails.

The server is installed once, in .cache/triton, and started once per session; a test that hurts it restarts it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from contract.tensors import CLIP_TEXT_EMBEDDER, FUSION_DECODER, NETWORKS, SAM_ENCODER
from service.errors import ModelBusy, ModelContractBroken, ModelNotReady, ModelTimeout
from service.inference.embedded import EmbeddedEngine
from service.inference.triton import TritonEngine
from service.triton_install import TritonUnavailable, install
from service.triton_server import Ports, TritonServer
from tests.component.test_engines import SHIPPED, bundle, click, longest_pause, region
from tests.conftest import require

pytestmark = [pytest.mark.triton, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / ".cache" / "triton"
RECOVERY_S = 5.0  # gRPC tries again within a second; the rest is for a busy machine

__all__ = ["bundle"]


@pytest.fixture(scope="session")
def installation():
    try:
        return install(DIRECTORY)
    except TritonUnavailable as error:
        require(False, str(error))


@pytest.fixture(scope="module")
def server(bundle, installation, tmp_path_factory):
    log = tmp_path_factory.mktemp("triton") / "server.log"
    with TritonServer(bundle, installation, ports=Ports.free(), log=log) as server:
        yield server


@pytest.fixture
def hurt(server):
    """The server, for a test that will hurt it: whole again afterwards."""
    yield server
    server.kill()
    server.start()


@asynccontextmanager
async def engine_at(bundle, url, *, timeout_s=60.0, max_waiting=4):
    engine = TritonEngine(bundle, url=url, timeout_s=timeout_s, max_waiting=max_waiting)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def engine(bundle, server):
    async with engine_at(bundle, server.url) as engine:
        await recovered(engine)  # a test before may have killed the server: gRPC waits before it tries an address again
        yield engine


def stub(server: TritonServer, model: str) -> int:
    """The process id of a model's Python stub."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has just ended
        if (
            "triton_python_backend_stub" in command[0]
            and f"{model}_0_0" in command
            and str(server.process.pid) in command
        ):
            return int(process.name)
    raise AssertionError(f"no stub of {model}")


async def recovered(engine: TritonEngine) -> float:
    """Seconds until the engine answers again by itself."""
    started = time.perf_counter()
    while True:
        try:
            await engine.check()
        except ModelNotReady:
            assert time.perf_counter() - started < RECOVERY_S
            await asyncio.sleep(0.1)
        else:
            return time.perf_counter() - started


async def test_both_engines_give_the_same_masks(bundle, engine):
    embedded = EmbeddedEngine(bundle, threads=2, max_waiting=4)
    image, organ_mask = region()
    nothing = np.zeros_like(organ_mask)
    for mask, prompts in (
        (nothing, click()),
        (organ_mask, click(finding="kidney tumour", at_zyx=(41.5, 60.25, 77))),
    ):
        here, there = await embedded.encode(image, mask), await engine.encode(image, mask)
        for name, array in here.tensors.items():
            np.testing.assert_allclose(there.tensors[name], array, atol=1e-3)
        text_here, text_there = await embedded.embed_text(prompts.phrases), await engine.embed_text(prompts.phrases)
        np.testing.assert_allclose(text_there, text_here, atol=1e-3)
        logits_here, logits_there = await embedded.decode(here, prompts), await engine.decode(there, prompts)
        np.testing.assert_allclose(logits_there, logits_here, atol=1e-3)
        assert np.array_equal(logits_there > 0, logits_here > 0)
    await embedded.close()


async def test_the_ensemble_gives_what_the_composed_calls_give(engine):
    composed = await engine.decode(await engine.encode(*region()), click())
    at_once = await engine.segment(*region(), click())
    np.testing.assert_allclose(at_once, composed, atol=1e-3)
    assert np.array_equal(at_once > 0, composed > 0)


async def test_requests_side_by_side_get_each_its_own_answer(engine):
    embeddings = await engine.encode(*region())
    places = [(40, 64, 80), (90, 20, 30), (20, 100, 60), (64, 64, 64)]
    alone = [await engine.decode(embeddings, click(at_zyx=place)) for place in places]
    together = await asyncio.gather(*(engine.decode(embeddings, click(at_zyx=place)) for place in places))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-3)  # batched by Triton or not
    assert not np.array_equal(together[0], together[1])


async def test_the_event_loop_goes_on_while_the_server_works(engine):
    task = asyncio.create_task(engine.segment(*region(), click()))
    assert await longest_pause(task) < 0.5
    await task


async def test_more_calls_than_allowed_are_refused_and_a_cancelled_one_frees_its_place(bundle, server):
    async with engine_at(bundle, server.url, max_waiting=1) as engine:
        await engine.check()
        first = asyncio.create_task(engine.encode(*region()))
        await asyncio.sleep(0.05)
        with pytest.raises(ModelBusy) as refused:
            await engine.encode(*region())
        assert refused.value.retry_after_s == 5
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await engine.encode(*region())


async def test_an_engine_without_a_server_is_not_ready_and_says_so_soon(bundle):
    async with engine_at(bundle, f"127.0.0.1:{Ports.free().grpc}") as engine:
        started = time.perf_counter()
        for call in (engine.check(), engine.encode(*region()), engine.segment(*region(), click())):
            with pytest.raises(ModelNotReady) as refused:
                await call
            assert refused.value.retry_after_s == 5
        assert time.perf_counter() - started < RECOVERY_S


async def test_a_server_with_other_weights_is_refused(bundle, server):
    files = bundle.files | {f"{SAM_ENCODER}/1/model.onnx": "0" * 64}
    async with engine_at(dataclasses.replace(bundle, files=files), server.url) as engine:
        with pytest.raises(ModelContractBroken, match="sam_encoder holds other weights"):
            await engine.check()


async def test_a_server_of_another_configuration_is_refused(bundle, server):
    async with engine_at(dataclasses.replace(bundle, configuration="vit_b"), server.url) as engine:
        with pytest.raises(ModelContractBroken, match="sam_encoder: image should be float32"):
            await engine.check()


async def test_a_slow_server_is_a_timeout(bundle, server):
    async with engine_at(bundle, server.url, timeout_s=0.15) as engine:
        await engine.check()
        calls = (engine.encode(*region()) for _ in range(4))  # one alone may be done in time
        late = [
            answer for answer in await asyncio.gather(*calls, return_exceptions=True) if isinstance(answer, Exception)
        ]
        assert late
        for answer in late:
            with pytest.raises(ModelTimeout, match=r"sam_encoder within 0\.15 s") as raised:
                raise answer
            assert raised.value.retry_after_s == 5
        await asyncio.sleep(1.5)  # the server still works off what nobody waits for
        await engine.check()


class Proxy:
    """A TCP proxy to the server that can hold every byte back, as a hanging server or a stuck network does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.flowing = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pass_on(source, sink)))

    async def _pass_on(self, source, sink):
        try:
            while chunk := await source.read(65536):
                await self.flowing.wait()
                sink.write(chunk)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


async def test_a_hanging_server_is_a_timeout_and_the_engine_goes_on_when_it_moves_again(bundle, server):
    async with Proxy(server.ports.grpc) as proxy, engine_at(bundle, proxy.url, timeout_s=1.0) as engine:
        proxy.flowing.set()
        await engine.check()
        proxy.flowing.clear()
        for call in (engine.check(), engine.embed_text(click().phrases)):
            with pytest.raises(ModelTimeout):
                await call
        proxy.flowing.set()
        await engine.check()
        assert (await engine.embed_text(click().phrases)).shape == (2, bundle.sizes.width)


async def test_a_server_killed_in_the_middle_is_not_ready_and_the_same_engine_goes_on_after_a_restart(engine, hurt):
    before = await engine.segment(*region(), click())
    under_way = asyncio.create_task(engine.segment(*region(), click()))
    await asyncio.sleep(0.03)
    assert not under_way.done()
    hurt.kill()
    with pytest.raises(ModelNotReady) as refused:
        await under_way
    assert refused.value.retry_after_s == 5
    with pytest.raises(ModelNotReady):
        await engine.check()
    await asyncio.to_thread(hurt.start)
    await recovered(engine)
    assert np.array_equal(await engine.segment(*region(), click()), before)


@pytest.mark.parametrize("model", [CLIP_TEXT_EMBEDDER, SAM_ENCODER])
async def test_a_dead_stub_is_noticed_though_triton_calls_itself_ready(engine, hurt, model):
    await engine.check()
    os.kill(stub(hurt, model), signal.SIGKILL)
    if model == SAM_ENCODER:  # its death shows with the first request for it, and in every canary from then on
        with pytest.raises(ModelNotReady):
            await engine.encode(*region())
    with pytest.raises(ModelNotReady):
        await engine.check()
    async with httpx.AsyncClient(trust_env=False) as client:
        ready = await client.get(f"http://127.0.0.1:{hurt.ports.http}/v2/health/ready")
    assert ready.status_code == 200
    await asyncio.to_thread(hurt.stop)
    await asyncio.to_thread(hurt.start)
    await recovered(engine)
    await engine.encode(*region())


def canary(server: TritonServer) -> tuple[int, str]:
    """Exit status and words of the liveness probe in Kubernetes."""
    address = f"http://127.0.0.1:{server.ports.http}"
    done = subprocess.run(  # noqa: S603
        [sys.executable, ROOT / "k8s" / "base" / "triton_canary.py", address],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip()


def test_the_liveness_canary_tells_a_living_server_from_one_with_a_dead_model_and_from_none(hurt):
    assert canary(hurt) == (0, "")
    os.kill(stub(hurt, FUSION_DECODER), signal.SIGKILL)
    assert canary(hurt) == (1, "the canary was answered 500")
    hurt.stop()
    assert canary(hurt) == (1, "the server does not answer")


async def test_of_two_servers_one_may_stop_and_no_call_fails(bundle, installation, server, tmp_path):
    """What a roll-out does to the gateway: the going server's calls are sent again to the other."""
    log = tmp_path / "second.log"
    going = TritonServer(bundle, installation, ports=Ports.free(), log=log)
    await asyncio.to_thread(going.start)
    try:
        async with engine_at(bundle, f"ipv4:{server.url},{going.url}") as engine:
            before = await engine.segment(*region(), click())
            answered = 0

            async def ask() -> None:
                nonlocal answered
                while not stopped.is_set() or answered < 6:
                    assert np.array_equal(await engine.segment(*region(), click()), before)
                    answered += 1

            stopped = asyncio.Event()
            asking = asyncio.gather(ask(), ask())
            await asyncio.sleep(1.0)
            await asyncio.to_thread(going.stop)
            stopped.set()
            await asking
    finally:
        await asyncio.to_thread(going.stop)
    assert answered >= 6


def test_a_stopped_server_leaves_no_process_port_or_shared_memory_behind(hurt):
    stubs = [stub(hurt, model) for model in NETWORKS]
    regions = f"tags_triton_{hurt.ports.grpc}_*"
    assert list(Path("/dev/shm").glob(regions))  # noqa: S108
    hurt.stop()
    assert not any(Path(f"/proc/{process}").exists() for process in stubs)
    assert not list(Path("/dev/shm").glob(regions))  # noqa: S108
    with socket.create_server(("127.0.0.1", hurt.ports.grpc)):
        pass


def test_a_server_that_cannot_start_says_why(bundle, installation, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = dataclasses.replace(Ports.free(), grpc=taken.getsockname()[1])
        server = TritonServer(bundle, installation, ports=ports, log=tmp_path / "server.log")
        with pytest.raises(TritonUnavailable, match="Triton ended with status"):
            server.start()
    assert server.process is None


def test_the_command_serves_until_it_is_asked_to_stop(installation):
    ports = Ports.free()
    program = (
        "import sys; from pathlib import Path; from contract.bundle import load_bundle;"
        "from service.triton_server import Ports, run_triton;"
        f"sys.exit(run_triton(load_bundle(Path({str(SHIPPED)!r})), Path({str(DIRECTORY)!r}), {ports!r}))"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            said = process.stdout.readline()
        finally:
            process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert f"on 127.0.0.1:{ports.grpc} (gRPC)" in said
    assert process.returncode == 0
