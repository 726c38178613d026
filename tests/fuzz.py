"""`python -m tests.fuzz --inputs 20000`: mutated DICOM through everything between an upload and its results.

Seeds are phantom series in every encoding, Enhanced objects, and masks (SEG, NIfTI). Each input is a seed with a few
bytes changed, cut, doubled, spliced or overwritten, more often in the header than in the pixels. It goes the way of a
request: ingest, every pixel, a previous mask, and the result objects. Allowed are a result and a refusal (4xx).
Anything else, more time or memory than the limits, or a file left behind is a finding, kept under --keep. The inputs
are tried in a process of their own, so that one at which a decoder aborts or hangs is a finding too, not the end.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.lineage import read_lineage
from service.dicom.outcome import Outcome
from service.dicom.receipt import receipt
from service.dicom.rtstruct import write_rtstruct
from service.dicom.secondary_capture import KeyImage, write_captures
from service.dicom.seg import write_seg
from service.dicom.sr import write_sr
from service.domain.measurements import intensity, measure
from service.errors import TagsError
from service.mask_file import read_mask
from service.nifti import write_nifti
from service.preview import key_image, patient_orientation
from service.telemetry.quiet import silence_foreign_libraries
from tests.enhanced import write_enhanced
from tests.outcomes import outcome_of, read
from tests.phantoms import write_ct_series

SHAPE = (3, 32, 40)
LIMITS = SeriesLimits(100, 10**7)
SECONDS_LIMIT = 5.0  # CPU of one input; a sound one takes some 20 ms
HANG_S = 120.0  # wall clock without a word from the process that tries the inputs
MEMORY_LIMIT_MIB = 512  # that a whole run may add to the process
HEADER_BYTES = 2200
MASK = "mask"  # name of the file with the previous mask
WRITTEN_EVERY = 4  # inputs: writing results costs ten times what reading does
SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEGLSLossless, JPEG2000Lossless,
)  # fmt: skip


@dataclass(frozen=True)
class Seeds:
    """Sound inputs: series as lists of file contents, and masks that belong to the first series."""

    series: list[list[bytes]]
    masks: list[bytes]


@dataclass(frozen=True)
class Attempt:
    """One input: what came of it, CPU seconds, largest memory that its process has added, and what is wrong."""

    outcome: str
    seconds: float
    grown_mib: float
    finding: str = ""


@dataclass
class Report:
    """What became of a run."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    grown_mib: float = 0.0

    def add(self, attempt: Attempt) -> None:
        self.outcomes[attempt.outcome] += 1
        self.slowest_s = max(self.slowest_s, attempt.seconds)
        self.grown_mib = max(self.grown_mib, attempt.grown_mib)
        if attempt.finding:
            self.findings.append(f"input {self.inputs}: {attempt.finding[:300]}")
        self.inputs += 1


def make_seeds(directory: Path) -> Seeds:
    series, first = [], None
    for number, syntax in enumerate(SYNTAXES):
        for modality in ("CT", "MR"):
            phantom = write_ct_series(
                directory / f"{number}{modality}", shape_zyx=SHAPE, modality=modality, transfer_syntax=syntax
            )
            first = first or phantom
            series.append([path.read_bytes() for path in phantom.paths])
    assert first is not None
    for name in ("enhanced", "enhanced-rle"):
        syntax = RLELossless if name.endswith("rle") else ExplicitVRLittleEndian
        path = write_enhanced(first, directory / name, transfer_syntax=syntax)
        series.append([path.read_bytes()])
    outcome = outcome_of(read(first.paths), blob(SHAPE))
    return Seeds(series, [write_seg(outcome)[0], write_nifti(outcome.mask)])


def blob(shape: tuple[int, ...]) -> np.ndarray:
    voxels = np.zeros(shape, bool)
    depth, height, width = shape
    voxels[depth // 2, height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = True
    return voxels


def mutated(content: bytes, randomness: random.Random) -> bytes:
    """A few changes, most of them in the header."""
    result = bytearray(content)
    for _ in range(randomness.choice((1, 1, 2, 4, 16))):
        if not result:
            break
        place = randomness.randrange(min(len(result), HEADER_BYTES) if randomness.random() < 0.8 else len(result))
        match randomness.randrange(7):
            case 0:
                result[place] ^= 1 << randomness.randrange(8)
            case 1:
                result[place] = randomness.choice((0, 0xFF, 0x7F, 0x80, 0x5C, 0x20, randomness.randrange(256)))
            case 2:
                del result[place : place + randomness.choice((1, 2, 8, 100))]
            case 3:
                result[place:place] = randomness.randbytes(randomness.choice((1, 2, 8, 100)))
            case 4:
                result[place:place] = result[place : place + randomness.choice((8, 64, 512))]
            case 5:
                other = randomness.randrange(len(result))
                result[place : place + 16] = result[other : other + 16]
            case _:
                del result[place:]
    return bytes(result)


def request(files: list[Path], mask: Path | None, *, write: bool) -> str:
    """All the way of a request. Returns: what came of it. Raises: TagsError."""
    series = read_series(files, series_instance_uid=None, limits=LIMITS)
    series.read(0, series.geometry.shape_zyx[0])
    found = blob(series.geometry.shape_zyx)
    if mask:
        found = read_mask(mask, series)
        read_lineage(mask)
    if not write:
        return "volume"
    outcome: Outcome = outcome_of(series, found)
    if found.any():
        write_seg(outcome)
        write_rtstruct(outcome)
    write_sr(outcome, measure(outcome.mask), intensity(series, outcome.mask) if found.any() else None)
    picture = key_image(series, outcome.mask, outcome.prompts, 0)
    write_captures(outcome, [KeyImage(0, picture, patient_orientation(series.geometry))])
    receipt(series, {})
    return "result"


def run(inputs: int, seed: int, directory: Path, keep: Path | None = None, minutes: float = float("inf")) -> Report:
    """Args: directory: empty; it is empty again afterwards. keep: where inputs with a finding go. minutes: after which
    no further input is tried."""
    report, until = Report(), time.monotonic() + minutes * 60
    context = multiprocessing.get_context("spawn")
    while report.inputs < inputs and time.monotonic() < until:
        receiver, sender = context.Pipe(duplex=False)
        numbers = range(report.inputs, inputs)
        process = context.Process(target=try_all, args=(numbers, seed, directory, keep, until, sender))
        process.start()
        sender.close()
        hung = not heard_out(receiver, report)
        if hung:
            process.kill()
        process.join()
        if process.exitcode:
            finding = f"hung for {HANG_S:.0f} s" if hung else f"the process ended with {process.exitcode}"
            keep_and_remove(directory, keep and keep / str(report.inputs))
            report.add(Attempt("dead", 0, 0, finding))
    if report.grown_mib > MEMORY_LIMIT_MIB:
        report.findings.append(f"memory grew by {report.grown_mib:.0f} MiB")
    return report


def heard_out(receiver: Connection, report: Report) -> bool:
    """Take in attempts until their process ends. Returns: False when it fell silent instead."""
    while receiver.poll(HANG_S):
        try:
            report.add(receiver.recv())
        except EOFError:
            return True
    return False


def try_all(numbers: range, seed: int, directory: Path, keep: Path | None, until: float, sender: Connection) -> None:
    """The process of the inputs."""
    silence_foreign_libraries(lambda: None)
    with tempfile.TemporaryDirectory() as folder:
        seeds = make_seeds(Path(folder))
    held_mib = peak_mib()
    for number in numbers:
        contents, mask = spoiled(seeds, seed, number)
        for index, content in enumerate(contents):
            (directory / f"{index:06d}").write_bytes(content)
        if mask is not None:
            (directory / MASK).write_bytes(mask)
        sender.send(attempt(directory, held_mib, keep and keep / str(number), write=number % WRITTEN_EVERY == 0))
        if time.monotonic() > until:
            break


def spoiled(seeds: Seeds, seed: int, number: int) -> tuple[list[bytes], bytes | None]:
    """Files of one series, and perhaps a mask, of which one kind is mutated."""
    randomness = random.Random(f"{seed} {number}")
    contents = list(randomness.choice(seeds.series))
    if randomness.random() < 0.2:
        return list(seeds.series[0]), mutated(randomness.choice(seeds.masks), randomness)
    one = randomness.randrange(len(contents))
    if randomness.random() < 0.5:  # the same change in every file keeps the series together
        return [mutated(content, random.Random(f"{seed} {number} x")) for content in contents], None
    contents[one] = mutated(contents[one], randomness)
    return contents, None


def attempt(directory: Path, held_mib: float, keep: Path | None, *, write: bool) -> Attempt:
    """Try what lies in `directory`, and clear it away."""
    files = sorted(directory.iterdir())
    mask = next((file for file in files if file.name == MASK), None)
    started, finding = time.process_time(), ""
    try:
        outcome = request([file for file in files if file != mask], mask, write=write)
    except TagsError as error:
        outcome = error.slug
        if error.status >= 500:
            finding = f"{error.status} {error.slug}: {error.detail} {error.__cause__!r}"
    except BaseException as error:  # a panic of a decoder is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = type(error).__name__
        finding = f"{outcome}: {error}"
    seconds = time.process_time() - started
    if seconds > SECONDS_LIMIT:
        finding = f"{seconds:.1f} s"
    if left := set(directory.iterdir()) - set(files):
        finding = f"{len(left)} files left behind"
    keep_and_remove(directory, keep if finding else None)
    return Attempt(outcome, seconds, peak_mib() - held_mib, finding)


def keep_and_remove(directory: Path, keep: Path | None) -> None:
    if keep:
        shutil.copytree(directory, keep)
    for file in directory.iterdir():
        file.unlink()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    inputs: Annotated[int, typer.Option(min=1)] = 20_000,
    seed: int = 1,
    keep: Annotated[Path | None, typer.Option(help="Directory for inputs with a finding.")] = None,
    minutes: Annotated[float, typer.Option(help="Stop earlier after that time.")] = 120,
) -> None:
    """Exit status 1 when there is a finding."""
    with tempfile.TemporaryDirectory() as directory:
        report = run(inputs, seed, Path(directory), keep, minutes)
    for slug, number in report.outcomes.most_common():
        print(f"{number:6d} {slug}")
    print(f"{report.inputs} inputs, slowest {report.slowest_s:.2f} s of CPU, {len(report.findings)} findings")
    print("\n".join(report.findings[:50]))
    raise typer.Exit(bool(report.findings))


if __name__ == "__main__":
    typer.run(main)
