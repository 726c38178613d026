"""`python -m bench.ingest`: instances per second by STOW-RS and by C-STORE from several senders, beside Orthanc.

Senders are programs in C, so that they cost little: curl with a ready multipart body (chunked), and DCMTK's storescu.
Each sends a study of its own. Gateway and Orthanc take turns on the same machine and disk, so that other work there
slows both alike, each with its defaults for durability; memory is the largest resident size while it receives. CPU time
per instance is the receiver's own, and says most on a machine that is busy.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from rich.console import Console
from rich.table import Table

from bench.process import cpu_s, memory_mib, pid_of
from bench.record import write_record
from demo.running import free_port, running_service
from service.dicom.phantom import write_phantom

BOUNDARY = "bench-boundary"
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
SIDE_PIXELS = 512


@dataclass(frozen=True)
class Receiver:
    """Where to send, and whose memory to watch."""

    stow_url: str
    dicom_port: int
    ae_title: str
    pid: int


@dataclass(frozen=True)
class Study:
    """One sender's share: files, and the same as one multipart body."""

    directory: Path
    body: Path


def main(
    images: Annotated[int, typer.Option(min=1, help="Images of 512 x 512 per sender.")] = 60,
    senders: Annotated[str, typer.Option(help="Numbers of senders.")] = "1,4,8",
) -> None:
    """Measure the gateway and Orthanc in turn."""
    counts = [int(count) for count in senders.split(",")]
    with tempfile.TemporaryDirectory() as name:
        image = dcmread(min(write_phantom(Path(name) / "phantom").directory.iterdir()))
        with running_gateway(Path(name) / "tags") as tags, running_orthanc(Path(name) / "orthanc") as orthanc:
            receivers = {"tags": tags, "orthanc": orthanc}
            figures = measured(receivers, Path(name) / "studies", image, images, counts)
    write_record("ingest", "", {"images_per_sender": images, "instances_per_second": figures})
    table = Table("receiver", "way", *(f"{count} senders" for count in counts), title="instances per second")
    for label, ways in figures.items():
        for way, rates in ways.items():
            table.add_row(label, way, *(f"{rate:.0f}" for rate in rates.values()))
    Console().print(table)


def measured(
    receivers: Mapping[str, Receiver], directory: Path, image: Dataset, images: int, counts: list[int]
) -> dict[str, dict[str, dict[str, float]]]:
    """By receiver, then way, memory and CPU time of each, then number of senders."""
    found: dict[str, dict[str, dict[str, float]]] = {label: defaultdict(dict) for label in receivers}
    ways: dict[str, Callable[[Receiver, Study], Sequence[str]]] = {"stow": stow_command, "c-store": store_command}
    for way, command in ways.items():
        for count in counts:
            for label, receiver in receivers.items():
                folder = directory / label / way
                studies = [write_study(folder / f"{count}-{number}", image, images) for number in range(count)]
                with memory_watched(receiver.pid) as largest:
                    started, cpu_started_s = time.perf_counter(), cpu_s(receiver.pid)
                    send([command(receiver, study) for study in studies])
                    seconds, cpu_seconds = time.perf_counter() - started, cpu_s(receiver.pid) - cpu_started_s
                found[label][way][str(count)] = round(count * images / seconds, 1)
                found[label][f"{way}, memory MiB"][str(count)] = round(largest(), 0)
                found[label][f"{way}, CPU ms per instance"][str(count)] = round(1000 * cpu_seconds / count / images, 1)
                shutil.rmtree(folder)
    return found


def send(commands: Sequence[Sequence[str]]) -> None:
    """All at once. Raises: RuntimeError: one of them failed."""
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]  # noqa: S603
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise RuntimeError("a sender failed")


def stow_command(receiver: Receiver, study: Study) -> list[str]:
    content_type = f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    return [
        "curl", "-sSf", "--noproxy", "*", "-H", content_type, "-H", "Transfer-Encoding: chunked", "-H", "Expect:",
        "-H", "Accept: application/dicom+json", "-T", str(study.body), "-X", "POST", receiver.stow_url,
    ]  # fmt: skip


def store_command(receiver: Receiver, study: Study) -> list[str]:
    return [
        "/usr/bin/storescu", "-R", "-aec", receiver.ae_title, "+sd", "127.0.0.1", str(receiver.dicom_port),
        str(study.directory),
    ]  # fmt: skip


def write_study(directory: Path, dataset: Dataset, images: int) -> Study:
    """A CT study of noise on a phantom's header, new UIDs each time."""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Rows = dataset.Columns = SIDE_PIXELS
    pixels = np.random.default_rng(1).integers(0, 2000, (SIDE_PIXELS, SIDE_PIXELS), np.int16).tobytes()
    directory.mkdir(parents=True)
    body = directory.with_suffix(".body")
    with body.open("wb") as stream:
        for number in range(images):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.InstanceNumber = number + 1
            dataset.PixelData = pixels
            path = directory / f"{number:05}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            stream.write(
                f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + path.read_bytes() + b"\r\n"
            )
        stream.write(f"--{BOUNDARY}--\r\n".encode())
    return Study(directory, body)


@contextmanager
def memory_watched(pid: int) -> Iterator[Callable[[], float]]:
    """The largest resident size so far, MiB."""
    largest, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            largest[0] = max(largest[0], memory_mib(pid, "VmRSS"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: largest[0]
    finally:
        stop.set()
        thread.join()


@contextmanager
def running_gateway(directory: Path) -> Iterator[Receiver]:
    port = free_port()
    with running_service(data_dir=str(directory), dimse_port=str(port), worker="false") as client:
        yield Receiver(f"{str(client.base_url).rstrip('/')}/dicom-web/studies", port, "TAGS", pid_of(client))


@contextmanager
def running_orthanc(directory: Path) -> Iterator[Receiver]:
    program = shutil.which("Orthanc")
    if program is None:
        raise typer.BadParameter("install orthanc and orthanc-dicomweb to compare with it")
    directory.mkdir(parents=True)
    port, dicom_port = free_port(), free_port()
    configuration = {
        "StorageDirectory": str(directory / "storage"), "IndexDirectory": str(directory / "storage"), "HttpPort": port,
        "DicomPort": dicom_port, "DicomAet": "ORTHANC", "AuthenticationEnabled": False, "Plugins": [PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (directory / "orthanc.json").write_text(json.dumps(configuration))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, str(directory / "orthanc.json")], stdout=log, stderr=log)  # noqa: S603
    try:
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/system", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield Receiver(f"http://127.0.0.1:{port}/dicom-web/studies", dicom_port, "ORTHANC", process.pid)
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    typer.run(main)
