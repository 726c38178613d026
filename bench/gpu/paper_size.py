"""`python -m bench.gpu.paper_size`: `vit_b` with random weights on a GPU with PyTorch. One table, one JSON.

Encoder and decoder for each precision, batch and way of running (eager, compiled, CUDA graph): time, peak memory, and
the share of the chip's dense matrix peak. Then the folded stem against the plain one, and the text tower. TensorRT and
ONNX Runtime's CUDA provider are named as absent where they are. Not run in this repository so far: no GPU was there.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.record import write_record
from bench.rewrites import folded_stem, plain_stem
from contract.sizes import VIT_B
from contract.tensors import CLIP_TEXT_EMBEDDER, NETWORKS, network_specs
from export.networks.build import build_tags
from export.parity import example_inputs

# Dense float16 and bfloat16 matrix peak, TFLOP/s, by NVIDIA's data sheets (SXM forms).
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40": 181.0, "L4": 121.0, "A10": 125.0}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UPS, RUNS = 3, 10
DEVICE = "cuda"


@dataclass(frozen=True)
class Row:
    what: str
    precision: str
    way: str
    batch: int
    ms: float
    peak_gib: float
    share: float | None  # of the matrix peak


def main(
    batches: Annotated[list[int] | None, typer.Option(help="Regions in one run; may be given again.")] = None,
    compile: Annotated[bool, typer.Option(help="Also through torch.compile: minutes more.")] = True,
) -> None:
    if not torch.cuda.is_available():
        raise typer.BadParameter("no GPU here; nothing was measured")
    console, name = Console(), torch.cuda.get_device_name()
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    torch.manual_seed(0)
    model, rows = build_tags(VIT_B).eval().to(DEVICE), []
    for precision, dtype in DTYPES.items():
        for network in NETWORKS:
            for batch in batches or [1, 2, 4]:
                rows += measure_network(model.networks()[network], network, precision, dtype, batch, peak, compile)
    rows += [measure_stem("stem, plain", plain_stem), measure_stem("stem, folded", folded_stem)]
    table = Table("what", "precision", "way", "batch", "ms", "peak, GiB", "of matrix peak", title=f"vit_b on {name}")
    for row in rows:
        share = "" if row.share is None else f"{100 * row.share:.0f} %"
        table.add_row(row.what, row.precision, row.way, str(row.batch), f"{row.ms:.2f}", f"{row.peak_gib:.2f}", share)
    console.print(table)
    for library in ("tensorrt", "onnxruntime_gpu"):
        if importlib.util.find_spec(library) is None:
            console.print(f"{library} is not here and was not measured")
    figures = {"gpu": name, "torch": torch.__version__, "rows": [vars(row) for row in rows]}
    write_record("gpu_paper_size", "vit_b, random weights", figures)


def measure_network(
    network: nn.Module, name: str, precision: str, dtype: torch.dtype, batch: int, peak: float | None, compile: bool
) -> list[Row]:
    """Eager, compiled and as a CUDA graph. Products run in `dtype` under autocast; norms and softmax in float32."""
    inputs = [
        torch.from_numpy(array).to(DEVICE) for array in example_inputs(network_specs(VIT_B)[name], batch, 0).values()
    ]
    work = operations(network, inputs)

    def forward(*tensors: Tensor) -> object:
        with torch.autocast(DEVICE, dtype=dtype):
            return network(*tensors)

    ways: dict[str, Callable[[], object]] = {"eager": lambda: forward(*inputs)}
    if compile:
        compiled = torch.compile(forward, dynamic=False)
        ways["compiled"] = lambda: compiled(*inputs)
    ways["CUDA graph"] = captured(lambda: forward(*inputs))
    rows = []
    for way, run in ways.items():
        ms, gib = timed(run)
        share = work / (ms / 1000) / (peak * 1e12) if peak and name != CLIP_TEXT_EMBEDDER else None
        rows.append(Row(name, precision, way, batch, ms, gib, share))
    return rows


def operations(network: nn.Module, inputs: list[Tensor]) -> int:
    """Multiplications and additions of one run, as torch counts products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The run as a CUDA graph: launches cost nothing, inputs stay where they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        run()
    return graph.replay


def measure_stem(what: str, form: Callable[..., Callable[[], Tensor]]) -> Row:
    """Float32, batch 1, up to the first block."""
    with torch.device(DEVICE):
        run = form(VIT_B)
    ms, gib = timed(run)
    return Row(what, "fp32", "eager", 1, ms, gib, None)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """(median ms, peak GiB allocated while it ran, weights and inputs included)."""
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(RUNS):
            started = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - started))
    return median(times), torch.cuda.max_memory_allocated() / 2**30


if __name__ == "__main__":
    typer.run(main)
