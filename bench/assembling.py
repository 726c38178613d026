"""`python -m bench.assembling`: from files to a volume, beside SimpleITK and dcm2niix, in one run.

300 slices of 512 x 512 (1 mm apart), uncompressed and as JPEG 2000 lossless, made from the tests' phantom. "one region"
decodes what a request with one region of 128 mm needs. Each reader runs in a process of its own, in turn, so that work
of others on the machine falls on all of them; the figure is the shortest wall time, beside the least CPU time (of all
threads) and the peak of resident memory above what the process held before it touched a file.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from rich.console import Console
from rich.table import Table

from bench.process import memory_mib
from bench.record import ROOT, write_record
from service.dicom.ingest import SeriesLimits, read_series
from tests.phantoms import write_ct_series

MIB = 1024**2
SHAPE_ZYX = (300, 512, 512)
REGION_SLICES = 128  # of 1 mm: one region of interest of the shipped bundle
MANY_SLICES = 2000
LIMITS = SeriesLimits(4000, 2000 * 512 * 512)
SYNTAXES = {"uncompressed": ExplicitVRLittleEndian, "JPEG 2000": JPEG2000Lossless}


def ours_whole(directory: Path) -> None:
    series = read_series(sorted(directory.iterdir()), series_instance_uid=None, limits=LIMITS)
    series.read(0, series.geometry.shape_zyx[0])


def ours_one_region(directory: Path) -> None:
    series = read_series(sorted(directory.iterdir()), series_instance_uid=None, limits=LIMITS)
    middle = series.geometry.shape_zyx[0] // 2
    series.read(middle - REGION_SLICES // 2, middle + REGION_SLICES // 2)


def by_simpleitk(directory: Path) -> None:
    import SimpleITK as sitk  # a test dependency, and no part of the other readers' memory

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(directory)))
    reader.Execute()


def by_dcm2niix(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        program = Path(sys.executable).with_name("dcm2niix")
        command = [program, "-z", "n", "-b", "n", "-f", "out", "-o", out, directory]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603


READERS: dict[str, Callable[[Path], None]] = {
    "TAGS, whole series": ours_whole,
    "TAGS, one region": ours_one_region,
    "SimpleITK": by_simpleitk,
    "dcm2niix": by_dcm2niix,
}


def main(
    runs: Annotated[int, typer.Option(min=1)] = 5,
    only: Annotated[str | None, typer.Option(hidden=True, help="One reader in this process.")] = None,
    directory: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Every reader on both series, then one region out of 2000 slices."""
    if only and directory:
        print(json.dumps(measure(READERS[only], directory)))
        return
    figures: dict[str, object] = {"runs": runs, "series_zyx": list(SHAPE_ZYX), "region_slices": REGION_SLICES}
    with tempfile.TemporaryDirectory() as folder:
        for name, syntax in SYNTAXES.items():
            series = Path(folder) / name
            write_ct_series(series, shape_zyx=SHAPE_ZYX, spacing_zyx_mm=(1, 0.8, 0.8), transfer_syntax=syntax)
            figures[name] = compare(name, series, runs)
        figures["many slices"] = many_slices(Path(folder) / "many")
    write_record("assembling", "none", figures)


def compare(name: str, series: Path, runs: int) -> dict[str, dict[str, float]]:
    """Readers in turn, `runs` times. Returns: the best figures of each."""
    measured: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    for _ in range(runs):
        for reader in READERS:
            measured[reader].append(in_its_own_process(reader, series))
    upload_mib = sum(path.stat().st_size for path in series.iterdir()) / MIB
    best = {r: {key: min(figure[key] for figure in list_) for key in list_[0]} for r, list_ in measured.items()}
    title = f"{SHAPE_ZYX[0]} slices of 512 x 512, {name}, {upload_mib:.0f} MiB"
    table = Table("reader", "wall, s", "CPU, s", "peak memory, MiB", title=title)
    for reader, figure in best.items():
        memory = "not measured" if reader == "dcm2niix" else f"{figure['peak_mib']:.0f}"
        table.add_row(reader, f"{figure['wall_s']:.2f}", f"{figure['cpu_s']:.2f}", memory)
    Console().print(table)
    return best | {"upload": {"mib": round(upload_mib, 1)}}


def many_slices(series: Path) -> dict[str, float]:
    """Peak memory for one region out of 2000 slices. They are small, for the sake of the disk: what must stay flat is
    what is held per slice of the upload, the region being 128 slices as before."""
    write_ct_series(series, shape_zyx=(MANY_SLICES, 64, 64), spacing_zyx_mm=(0.5, 3, 3))
    figure = in_its_own_process("TAGS, one region", series)
    upload_mib = sum(path.stat().st_size for path in series.iterdir()) / MIB
    Console().print(f"{MANY_SLICES} slices, {upload_mib:.0f} MiB: peak {figure['peak_mib']:.0f} MiB for one region")
    return figure | {"upload_mib": round(upload_mib, 1)}


def in_its_own_process(reader: str, directory: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.assembling", "--only", reader, "--directory", str(directory)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(reader: Callable[[Path], None], directory: Path) -> dict[str, float]:
    if reader is by_simpleitk:
        import SimpleITK  # noqa: F401  # loaded before the clock starts, as the others are
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew, at what is held now
    before, started, held_mib = cpu_s(), time.perf_counter(), peak_mib()
    reader(directory)
    return {
        "wall_s": round(time.perf_counter() - started, 3),
        "cpu_s": round(cpu_s() - before, 3),
        "peak_mib": round(peak_mib() - held_mib, 1),
    }


def cpu_s() -> float:
    """User and system seconds of this process and of the children that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_mib() -> float:
    """Peak of this process's resident memory, without children: nothing is said of dcm2niix."""
    return memory_mib("self", "VmHWM")


if __name__ == "__main__":
    typer.run(main)
