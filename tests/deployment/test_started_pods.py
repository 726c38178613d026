"""A pod's process, started as a kubelet would: the image's and the manifest's command and environment, the mounted
files, the keys of its init container. Only the folders are elsewhere, and the ports are free ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.running import free_port
from service.triton_install import TritonUnavailable, install
from service.triton_server import Ports
from tests.conftest import require
from tests.deployment.rendered import ROOT, environment, of_kind, program, run

pytestmark = pytest.mark.slow
START_S = 120
IMAGE = ROOT / "docker" / "gateway.Dockerfile"


class Pod:
    """The folders and the process of one pod of the overlay `cpu`."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.spec = of_kind("cpu", "Deployment")[name]["spec"]["template"]["spec"]
        self.log = directory / "log"
        for folder in ("data", "tmp"):
            (directory / folder).mkdir(parents=True)
        for path, text in files_of_maps(self.spec):
            placed = Path(self.here(path))
            placed.parent.mkdir(parents=True, exist_ok=True)
            placed.write_text(self.here(text) if placed.suffix == ".sh" else text)

    def here(self, text: str) -> str:
        """The pod's folders are below this one's."""
        return re.sub(r"(?<![\w/.])/(data|tmp|etc/tags)\b", lambda found: f"{self.directory}/{found[1]}", text)

    def command(self, *more: object) -> list[str]:
        """Of the pod's container; the gateway's image has an entry point, which is `tags`."""
        container = self.spec["containers"][0]
        words = [*container.get("command", ["tags"]), *container["args"]]
        return [self.here(word) for word in words] + list(map(str, more))

    @contextmanager
    def running(self, command: list[str], variables: dict[str, str], live: str) -> Iterator[None]:
        """From the start until `live` answers, to the end of the process."""
        found = shutil.which(command[0], path=variables["PATH"]) or command[0]
        with self.log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603
                [found, *command[1:]], cwd=self.directory, env=variables, stdout=out, stderr=out
            )
        try:
            wait_until_live(live, process, self.log)
            yield
        finally:
            process.terminate()
            process.wait(START_S)  # not killed sooner: Triton takes its models down first


def files_of_maps(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(path in the pod, text) of what ConfigMaps put there."""
    maps = of_kind("cpu", "ConfigMap")
    volumes = {volume["name"]: volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        for mount in container["volumeMounts"]:
            if mount["name"] in volumes:
                for file, text in maps[volumes[mount["name"]]]["data"].items():
                    yield f"{mount['mountPath']}/{file}", text


def wait_until_live(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_S * 4):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(address).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    raise AssertionError(log.read_text())


@contextmanager
def gateway(name: str, directory: Path, triton_port: int) -> Iterator[tuple[Pod, str]]:
    """The gateway's or the worker's pod, and its address."""
    pod, port = Pod(name, directory), free_port()
    program(directory / "bin", "tags", f"{sys.executable} -m service.cli")
    path = {"PATH": f"{directory}/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    (starting,) = pod.spec["initContainers"]
    done = run(*map(pod.here, starting["command"]), **path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

    of_image = dict(re.findall(r"\b(TAGS_\w+)=(\S+)", IMAGE.read_text().split("\nENV ")[1].split("\nUSER")[0]))
    told = of_image | environment("cpu", name) | {"POD_NAME": f"{name}-0"}
    told = {key: re.sub(r"\$\((\w+)\)", lambda found: told[found[1]], value) for key, value in told.items()}
    told = {key: pod.here(value) for key, value in told.items()}
    told |= {"TAGS_TRITON_URL": told["TAGS_TRITON_URL"].replace("triton:8001", f"localhost:{triton_port}")}
    told |= {"TAGS_PORT": str(port), "TAGS_BUNDLE_DIR": str(ROOT / "model_repository")}
    if "TAGS_DIMSE_PORT" in told:
        told["TAGS_DIMSE_PORT"] = str(free_port())
    address = f"http://127.0.0.1:{port}"
    with pod.running(pod.command(), told | path, f"{address}/health/live"):
        yield pod, address


def asked(address: str, key: Path | None = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key.read_text().strip()}"} if key else {}
    answer = httpx.get(address, headers=headers, timeout=60)
    return answer.status_code, answer.json()


def test_a_worker_lives_without_triton_and_says_that_it_is_not_ready(tmp_path: Path) -> None:
    with gateway("worker", tmp_path / "worker", free_port()) as (_, address):
        status, refusal = asked(f"{address}/health/ready")
        assert (status, refusal["type"].split("#")[1]) == (503, "model-not-ready")


@pytest.mark.triton
def test_triton_serves_as_its_manifest_says_and_a_gateway_is_ready_with_it(tmp_path: Path) -> None:
    try:
        installed = install(ROOT / ".cache" / "triton")
    except TritonUnavailable as error:
        require(False, str(error))
    triton, ports = Pod("triton", tmp_path / "triton"), Ports.free()
    program(triton.directory / "bin", "tritonserver", str(installed.server))
    variables = installed.variables()
    variables["PATH"] = f"{triton.directory}/bin:{variables['PATH']}"
    command = triton.command(
        f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}",
        f"--backend-directory={installed.backends}",
    )  # fmt: skip
    command = [word.replace("/models", str(ROOT / "model_repository")) for word in command]
    server = f"http://127.0.0.1:{ports.http}"
    probes = triton.spec["containers"][0]
    with triton.running(command, variables, server + probes["startupProbe"]["httpGet"]["path"]):
        canary = run(*map(triton.here, probes["livenessProbe"]["exec"]["command"]), server)
        assert (canary.returncode, canary.stdout) == (0, ""), triton.log.read_text()
        closed = httpx.post(f"{server}/v2/repository/models/tags/unload")
        assert closed.status_code == 403
        with gateway("gateway", tmp_path / "gateway", ports.grpc) as (pod, address):
            assert asked(f"{address}/health/ready")[0] == 200
            assert asked(f"{address}/capabilities")[0] == 401
            status, told = asked(f"{address}/capabilities", pod.directory / "data" / "access" / "first-key-admin")
            assert (status, told["engine"]) == (200, "triton")
            assert (pod.directory / "data" / "audit-gateway-0.log").exists()
