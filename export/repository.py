"""A checkpoint to a bundle: the Triton model repository that both engines serve (layout in `contract.bundle`).

Everything is made and checked in a temporary folder beside the target and moved into place file by file, bundle.json
last. A failure before that leaves the target as it was; one in the middle leaves a bundle.json whose digests do not
fit, which `load_bundle` refuses.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from contract.bundle import FILE_NAME, Bundle, load_bundle, onnx_file, sha256
from contract.tensors import ENSEMBLE, NETWORKS, NetworkSpec, network_specs
from export.checkpoint import Checkpoint
from export.networks.build import Tags, shallow
from export.parity import Difference, compare, randomise_zeros
from export.to_onnx import write_onnx
from export.triton_config import configs

BATCHES = (1, 2)  # one alone, and two that must not leak into each other
DEEPEST_RUN = 8  # blocks of a network that is held to torch whole; a deeper one would take a CPU most of an hour
SEED = 2025  # of the inputs and of randomised weights in the parity check
BACKEND = Path(__file__).with_name("triton_model.py")

Report = Callable[[str], None]  # told before each step of the export


@dataclass(frozen=True)
class Export:
    """What was written, and the evidence for it."""

    bundle: Bundle
    differences: dict[str, tuple[Difference, ...]]  # by network, over all batches and both weight sets


def write_repository(
    checkpoint: Checkpoint, out: Path, *, name: str, version: str, threads: int, report: Report = lambda step: None
) -> Export:
    """Export `checkpoint` into `out`. Raises: InterfaceBroken, ParityBroken; `out` is then untouched."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        staging = Path(folder) / "repository"
        differences = write_networks(checkpoint, staging, Path(folder), report)
        report("configuration and bundle.json")
        bundle = describe(checkpoint, name, version)
        write_models(bundle, staging, threads)
        bundle.write(staging)
        load_bundle(staging)
        swap(staging, out)
    return Export(load_bundle(out), differences)


def write_networks(
    checkpoint: Checkpoint, staging: Path, scratch: Path, report: Report
) -> dict[str, tuple[Difference, ...]]:
    """The ONNX files, each held to torch. Where weights are still zero, a randomised copy is exported and compared
    too: zeros hide faults (see `parity`). Deep networks are written and checked whole, and run at reduced depth.
    Raises: InterfaceBroken, ParityBroken."""
    model, specs = checkpoint.model, network_specs(checkpoint.sizes)
    if checkpoint.sizes.depth > DEEPEST_RUN:
        for name, network in model.networks().items():
            report(f"{name}: export")
            write_unrun(network, specs[name], staging / onnx_file(name))
        return compare_shallow(model, specs, scratch, report)
    differences = {}
    for name, network in model.networks().items():
        report(f"{name}: export and parity")
        differences[name] = write_checked(network, specs[name], staging / onnx_file(name))
        alive = copy.deepcopy(network)
        if randomise_zeros(alive, SEED):
            report(f"{name}: parity on randomised weights")
            differences[name] += write_checked(alive, specs[name], scratch / f"{name}.onnx")
    return differences


def compare_shallow(
    model: Tags, specs: dict[str, NetworkSpec], scratch: Path, report: Report
) -> dict[str, tuple[Difference, ...]]:
    """Parity of the same graphs with fewer blocks, no weight zero, one region. Raises: as `write_networks`."""
    reduced = shallow(model)
    randomise_zeros(reduced, SEED)
    differences = {}
    for name, network in reduced.networks().items():
        report(f"{name}: parity at reduced depth")
        path = scratch / f"{name}.onnx"
        write_unrun(network, specs[name], path)
        differences[name] = compare(network, specs[name], path, batch=1, seed=SEED)
        path.unlink()
    return differences


def write_unrun(network: nn.Module, spec: NetworkSpec, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_onnx(network, spec, path)


def write_checked(network: nn.Module, spec: NetworkSpec, path: Path) -> tuple[Difference, ...]:
    write_unrun(network, spec, path)
    return tuple(
        difference for batch in BATCHES for difference in compare(network, spec, path, batch=batch, seed=SEED + batch)
    )


def describe(checkpoint: Checkpoint, name: str, version: str) -> Bundle:
    meta = checkpoint.meta
    return Bundle(
        name=name,
        version=version,
        configuration=checkpoint.sizes.name,
        grid=meta.grid,
        intensity=meta.intensity,
        targets=meta.targets,
        findings=meta.findings,
        trained=checkpoint.trained,
        training=meta.training,
        quality=meta.quality,
    )


def write_models(bundle: Bundle, staging: Path, threads: int) -> None:
    """`config.pbtxt` of the four models, the backend beside each ONNX file, the ensemble's empty version folder."""
    digests = {network: sha256(staging / onnx_file(network)) for network in NETWORKS}
    texts = configs(network_specs(bundle.sizes), bundle=bundle.identity, digests=digests, threads=threads)
    for model, text in texts.items():
        (staging / model / "1").mkdir(parents=True, exist_ok=True)
        (staging / model / "config.pbtxt").write_text(text)
    for network in NETWORKS:
        shutil.copyfile(BACKEND, staging / network / "1" / "model.py")
    (staging / ENSEMBLE / "1" / ".gitkeep").touch()


def swap(staging: Path, out: Path) -> None:
    """Move every file of `staging` to its place in `out`, each atomically, bundle.json last."""
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    files.sort(key=lambda path: path == staging / FILE_NAME)
    for path in files:
        target = out / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
