"""`python -m bench.engine`: times of the three networks through ONNX Runtime, as the embedded engine runs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import onnxruntime as ort
import typer
from rich.console import Console
from rich.table import Table

from bench.record import ROOT, write_record
from contract.bundle import load_bundle
from contract.tensors import FUSION_DECODER, NETWORKS, SAM_ENCODER, NetworkSpec, network_specs

TARGET_MS = 1500  # encoder and decoder of one region, two threads; asked for 128^3, the shipped regions have 64^3


def main(
    bundle_dir: Annotated[Path, typer.Option(envvar="TAGS_BUNDLE_DIR")] = ROOT / "model_repository",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    runs: Annotated[int, typer.Option(min=1)] = 7,
) -> None:
    """Median of several runs after one warm-up; random input, since the times do not depend on it."""
    bundle = load_bundle(bundle_dir)
    times = {
        name: measured(bundle.onnx_path(name), network_specs(bundle.sizes)[name], threads, runs) for name in NETWORKS
    }
    table = Table("network", "median, ms", "fastest, ms", title=f"{bundle.identity}, {threads} threads, {runs} runs")
    for name, milliseconds in times.items():
        table.add_row(name, f"{median(milliseconds):.0f}", f"{min(milliseconds):.0f}")
    both = median(times[SAM_ENCODER]) + median(times[FUSION_DECODER])
    table.add_row("encoder and decoder", f"{both:.0f}", f"target {TARGET_MS}")
    Console().print(table)
    figures = {name: round(median(milliseconds), 1) for name, milliseconds in times.items()}
    write_record(
        "engine", bundle.identity, {"threads": threads, "runs": runs, "ms": figures, "both_ms": round(both, 1)}
    )


def measured(file: Path, spec: NetworkSpec, threads: int, runs: int) -> list[float]:
    """Milliseconds of each run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        tensor.name: (
            rng.standard_normal((1, *tensor.shape))
            if tensor.dtype.startswith("float")
            else np.zeros((1, *tensor.shape))
        ).astype(tensor.dtype)
        for tensor in spec.inputs
    }

    def once() -> object:
        return session.run(None, feeds)

    once()
    return [timed_ms(once) for _ in range(runs)]


def timed_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    typer.run(main)
