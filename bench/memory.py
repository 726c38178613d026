"""`python -m bench.memory`: the gateway's peak memory for one box in 300 and in 2000 slices of 512 x 512.

The SEG alone is asked for, and everything (`format=bundle`).

Each upload is a TAR of uncompressed CT slices, 0.5 mm apart, sent to a gateway of its own; all else is alike, so that
what differs is what is held per slice. Peak and resident memory are the gateway process's own, networks included.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Annotated

import httpx
import typer
from pydicom import dcmread
from pydicom.uid import generate_uid
from rich.console import Console
from rich.table import Table

from bench.process import memory_mib, pid_of
from bench.record import write_record
from demo.running import running_service
from tests.phantoms import write_ct_series

MIB = 1024**2
SIDE_PIXELS = 512
SPACING_ZYX_MM = (0.5, 0.8, 0.8)
FORMATS = ("seg", "bundle")
BOX_MM = (40.0, 40.0, 30.0)  # x, y, z


def main(slices: Annotated[str, typer.Option(help="Numbers of slices.")] = "300,2000") -> None:
    """Idle and peak memory by number of slices."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, slices.split(",")):
            upload = Path(folder) / "series.tar"
            centre_lps_mm = write_upload(upload, count)
            for format_ in FORMATS:
                with running_service(data_dir=str(Path(folder) / "data")) as client:
                    figures[f"{count}, {format_}"] = measure(client, upload, centre_lps_mm, format_)
    write_record("memory", "", {"box_mm": BOX_MM, "slices": figures})
    table = Table("slices", *next(iter(figures.values())))
    for label, figure in figures.items():
        table.add_row(label, *(f"{value:.0f}" for value in figure.values()))
    Console().print(table)


def write_upload(path: Path, count: int) -> tuple[float, float, float]:
    """One slice of the phantom `count` times. Returns: the tumour's middle in the middle slice, LPS mm."""
    with tempfile.TemporaryDirectory() as folder:
        shape = (1, SIDE_PIXELS, SIDE_PIXELS)
        phantom = write_ct_series(Path(folder), shape_zyx=shape, spacing_zyx_mm=SPACING_ZYX_MM)
        image = dcmread(phantom.paths[0])
    x_mm, y_mm, first_mm = map(float, image.ImagePositionPatient)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.InstanceNumber = number + 1
            image.ImagePositionPatient = [x_mm, y_mm, first_mm + number * SPACING_ZYX_MM[0]]
            image.save_as(content := BytesIO(), enforce_file_format=True)
            entry = tarfile.TarInfo(f"{number:05}.dcm")
            entry.size = content.tell()
            content.seek(0)
            archive.addfile(entry, content)
    x, y, z = phantom.centre_lps_mm
    return float(x), float(y), float(z + count // 2 * SPACING_ZYX_MM[0])


def measure(
    client: httpx.Client, upload: Path, centre_lps_mm: tuple[float, float, float], format_: str
) -> dict[str, float]:
    """MiB and seconds of one request."""
    pid = pid_of(client)
    idle_mib = memory_mib(pid, "VmRSS")
    lower, upper = ([c + sign * edge / 2 for c, edge in zip(centre_lps_mm, BOX_MM, strict=True)] for sign in (-1, 1))
    started = time.perf_counter()
    with upload.open("rb") as stream:
        prompts = json.dumps({"boxes": [{"lps_mm": [lower, upper]}]})
        data = {"prompts": prompts, "format": format_}
        answer = client.post("/segment", files={"files": ("series.tar", stream)}, data=data)
    answer.raise_for_status()
    return {
        "upload_mib": round(upload.stat().st_size / MIB, 1),
        "idle_mib": round(idle_mib, 1),
        "peak_mib": round(memory_mib(pid, "VmHWM"), 1),
        "wall_s": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    typer.run(main)
