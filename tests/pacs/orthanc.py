"""A real Orthanc (Debian packages orthanc, orthanc-dicomweb) as a process of the test."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from demo.running import ROOT, free_port
from tests.conftest import require

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STORESCU = "/usr/bin/storescu"  # pynetdicom puts another program of this name into the environment
START_S, JOB_S = 30, 60
PAGE = ROOT / "docs" / "orthanc.md"
OF_THE_TESTS = {
    "Name": "PACS", "DicomAet": "PACS", "RegisteredUsers": {"pacs": "pacs-secret"}, "RemoteAccessAllowed": False,
    "UnknownSopClassAccepted": True, "DicomCheckCalledAet": True, "OverwriteInstances": False,
}  # fmt: skip


def documented(language: str) -> str:
    """The one block of this language that docs/orthanc.md shows."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)
    return str(block)


def require_orthanc() -> None:
    require(shutil.which("Orthanc") is not None and PLUGIN.exists(), "orthanc and orthanc-dicomweb are not installed")


def require_dcmtk() -> None:
    require(Path(STORESCU).exists(), "dcmtk is not installed")


@dataclass
class Orthanc:
    """Its address, and a client that is logged in."""

    url: str
    dicom_port: int
    client: httpx.Client

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def upload(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.client.post("/instances", content=path.read_bytes()).raise_for_status()

    def find(self, level: str, **query: str) -> list[str]:
        """Orthanc's own ids."""
        found: list[str] = self.client.post("/tools/find", json={"Level": level, "Query": query}).json()
        return found

    def run(self, address: str, **body: Any) -> dict[str, Any]:
        """Start a job and wait for its end."""
        started = self.client.post(address, json={"Synchronous": False, **body})
        started.raise_for_status()
        return self.wait(started.json()["ID"])

    def wait(self, job: str) -> dict[str, Any]:
        deadline = time.monotonic() + JOB_S
        while time.monotonic() < deadline:
            document: dict[str, Any] = self.client.get(f"/jobs/{job}").json()
            if document["State"] in ("Success", "Failure"):
                return document
            time.sleep(0.2)
        raise AssertionError("Orthanc's job did not end")

    def push_by_stow(self, resources: Sequence[str]) -> dict[str, Any]:
        return self.run("/dicom-web/servers/tags/stow", Resources=list(resources))

    def push_by_dimse(self, resources: Sequence[str]) -> dict[str, Any]:
        return self.run("/modalities/tags/store", Resources=list(resources))

    def instances(self, **query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get("/dicom-web/instances", params=query).json()
        return found


@contextmanager
def running_orthanc(
    directory: Path,
    *,
    tags_url: str,
    tags_dimse_port: int,
    lua: bool = False,
    tags_key: str = "",
    ca_file: str = "",
    changed: Mapping[str, Any] = OF_THE_TESTS,
) -> Iterator[Orthanc]:
    """As docs/orthanc.md configures it, in places of its own.

    Args: tags_key: the API key with which it pushes. ca_file: certificates that it trusts for HTTPS.
    """
    directory.mkdir(parents=True)
    tags: dict[str, Any] = {"Url": f"{tags_url}/dicom-web/"}
    if tags_key:
        tags["HttpHeaders"] = {"Authorization": f"Bearer {tags_key}"}
    port, dicom_port = free_port(), free_port()
    (directory / "route.lua").write_text(documented("lua"))
    configuration = json.loads(documented("json")) | dict(changed) | {
        "StorageDirectory": str(directory / "storage"), "IndexDirectory": str(directory / "storage"),
        "HttpPort": port, "DicomPort": dicom_port, "StableAge": 2,
        "LuaScripts": [str(directory / "route.lua")] if lua else [], "HttpsCACertificates": ca_file,
    }  # fmt: skip
    configuration["DicomModalities"]["tags"][2] = tags_dimse_port
    configuration["DicomWeb"]["Servers"]["tags"] = tags
    (directory / "orthanc.json").write_text(json.dumps(configuration))
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (directory / "log").open("wb") as log:
        command = [shutil.which("Orthanc") or "Orthanc", str(directory / "orthanc.json")]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603
    url = f"http://127.0.0.1:{port}"
    (login,) = configuration["RegisteredUsers"].items()
    try:
        once = httpx.Limits(max_keepalive_connections=0)  # Orthanc may close a kept one just as it is used again
        with httpx.Client(base_url=url, auth=login, timeout=60, trust_env=False, limits=once) as client:
            deadline = time.monotonic() + START_S
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    client.get("/system").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            else:
                raise AssertionError((directory / "log").read_text(errors="replace")[-2000:])
            yield Orthanc(url, dicom_port, client)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
