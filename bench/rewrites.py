"""`python -m bench.rewrites`: what each exact rewrite saves against the plain form, both forms in one run. Needs torch.

Each form runs in a process of its own, so that its peak memory is its own: the growth of the resident set over what
stood before the run. Weights are random and shared by seed; the largest difference between the two answers is printed
beside the times, so that a form that computes something else cannot win. Runs in the export environment.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from bench.process import memory_mib
from bench.record import write_record
from contract.sizes import VIT_B, Sizes
from contract.tensors import FEATURE_LEVELS
from export.networks.attention import WindowAttention, shift_sides, unwindows, windows
from export.networks.encoder import AggregationHead, Block3d
from export.networks.prompts import sample
from export.networks.stem import FoldedStem, fold
from export.networks.upsampled import tap_matrix, upsampled_conv

SEED = 7
CLICKS = 3
Form = Callable[[Sizes], Callable[[], Tensor]]


@dataclass(frozen=True)
class Measured:
    ms: float  # wall
    cpu_ms: float  # of all threads
    peak_mib: float
    answer: Tensor


def plain_stem(sizes: Sizes) -> Callable[[], Tensor]:
    """x4 upsampling, SAM's patches on every slice, 16 slices to one: 512 slices of 512 x 512 at the paper's size."""
    image, organ_mask, patch, patch_bias, along, along_bias = stem_inputs(sizes)
    kernel, width = along[:, None, None, None], sizes.width

    def run() -> Tensor:
        volume = torch.cat([image, image, organ_mask], dim=1)
        fine = functional.interpolate(volume, scale_factor=16 // sizes.patch, mode="trilinear", align_corners=False)
        patches = functional.conv2d(fine[0].transpose(0, 1), patch, patch_bias, stride=16)
        columns = patches.permute(1, 2, 3, 0)[None]
        return functional.conv3d(columns, kernel, along_bias, stride=(1, 1, 16), groups=width)[0].permute(3, 1, 2, 0)

    return run


def folded_stem(sizes: Sizes) -> Callable[[], Tensor]:
    image, organ_mask, patch, patch_bias, along, along_bias = stem_inputs(sizes)
    weight, bias = fold(patch, patch_bias, along, along_bias, sizes.patch)
    stem = FoldedStem(sizes.patch, sizes.width)
    stem.load_state_dict({"proj.weight": weight, "proj.bias": bias})
    return lambda: stem(image, organ_mask)[0]


def stem_inputs(sizes: Sizes) -> tuple[Tensor, ...]:
    image = torch.randn(1, 1, *(sizes.roi,) * 3)
    organ_mask = (torch.rand_like(image) > 0.5).float()
    patch = 0.05 * torch.randn(sizes.width, 3, 16, 16)
    along = 0.2 * torch.randn(sizes.width, 16)
    return image, organ_mask, patch, torch.randn(sizes.width), along, torch.randn(sizes.width)


def plain_first_block(sizes: Sizes) -> Callable[[], Tensor]:
    """The plain stem, and a shifted block with added relative positions and a stored mask."""
    stem, block, mask = plain_stem(sizes), first_block(sizes), shift_mask(sizes)
    shift = [sizes.window // 2] * 3

    def run() -> Tensor:
        x = block.adapter(stem()[None])
        rolled = torch.roll(block.norm1(x), [-by for by in shift], dims=[1, 2, 3])
        attended = attend_plainly(block.attn, windows(rolled, sizes.window), mask)
        x = x + torch.roll(unwindows(attended, sizes.window, sizes.tokens), shift, dims=[1, 2, 3])
        return x + block.mlp(block.norm2(x))

    return run


def rewritten_first_block(sizes: Sizes) -> Callable[[], Tensor]:
    stem, block = folded_stem(sizes), first_block(sizes)
    return lambda: block(stem()[None])


def first_block(sizes: Sizes) -> Block3d:
    torch.manual_seed(SEED)
    block = Block3d(sizes, shifted=True)
    for table in (block.attn.rel_pos_d, block.attn.rel_pos_h, block.attn.rel_pos_w):
        torch.nn.init.normal_(table, std=0.1)
    return block


def plain_attention(sizes: Sizes) -> Callable[[], Tensor]:
    """One shifted block's attention: relative positions added in five dimensions, a stored mask of -100."""
    attention, x = attention_inputs(sizes)
    mask = shift_mask(sizes)
    return lambda: attend_plainly(attention, x, mask)


def shift_mask(sizes: Sizes) -> Tensor:
    """(windows, window**3, window**3): 0, or -100 between tokens that only the shift brought together."""
    sides = shift_sides(sizes.tokens, sizes.window)
    return -100.0 * (sides[:, :, None] != sides[:, None]).any(-1).float()


def attend_plainly(attention: WindowAttention, x: Tensor, mask: Tensor) -> Tensor:
    """x: (windows, window**3, E)."""
    window, heads, head, offsets = attention.window, attention.heads, attention.head_width, attention.offsets
    n, length, width = x.shape
    q, k, v = attention.qkv(x).reshape(n, length, 3, heads, head).permute(2, 0, 3, 1, 4)
    logits = ((q * head**-0.5) @ k.transpose(-1, -2)).reshape(n, heads, *[window] * 6)
    cube = q.reshape(n, heads, window, window, window, head)
    for axis, table in enumerate((attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)):
        term = torch.einsum(f"nmabcz,{'abc'[axis]}kz->nmabck", cube, table[offsets])
        shape = [n, heads, window, window, window, 1, 1, 1]
        shape[5 + axis] = window
        logits = logits + term.reshape(shape)
    logits = logits.reshape(n, heads, length, length) + mask[:, None]
    out = torch.softmax(logits, dim=-1) @ v
    return attention.proj(out.transpose(1, 2).reshape(n, length, width))


def joined_attention(sizes: Sizes) -> Callable[[], Tensor]:
    """The same with positions and mask as columns of queries and keys."""
    attention, x = attention_inputs(sizes)
    sides = shift_sides(sizes.tokens, sizes.window)
    return lambda: attention(x, sides)


def attention_inputs(sizes: Sizes) -> tuple[WindowAttention, Tensor]:
    attention = WindowAttention(sizes.width, sizes.heads, sizes.window, half_precision=True)
    for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table, std=0.1)
    return attention, windows(torch.randn(1, *(sizes.tokens,) * 3, sizes.width), sizes.window)


def plain_upsampling(sizes: Sizes) -> Callable[[], Tensor]:
    """The levels upsampled to the half grid, then convolved."""
    x, weight = level_inputs(sizes)
    return lambda: functional.conv3d(
        functional.interpolate(x, size=(sizes.half,) * 3, mode="trilinear", align_corners=True), weight, padding=1
    )


def spread_taps(sizes: Sizes) -> Callable[[], Tensor]:
    x, weight = level_inputs(sizes)
    taps = tap_matrix(sizes.tokens, sizes.half)
    return lambda: upsampled_conv(x, weight, taps)


def level_inputs(sizes: Sizes) -> tuple[Tensor, Tensor]:
    channels = sizes.aggregation
    return torch.randn(1, 4 * channels, *(sizes.tokens,) * 3), 0.02 * torch.randn(channels, 4 * channels, 3, 3, 3)


def plain_sampling(sizes: Sizes) -> Callable[[], Tensor]:
    """grid_sample in 5 dimensions, which TensorRT does not have."""
    features, coords = sampling_inputs(sizes)
    grid = ((coords + 0.5) * 2 / sizes.roi - 1).flip(-1)[:, :, None, None]
    return lambda: functional.grid_sample(features, grid, padding_mode="zeros", align_corners=False)[..., 0, 0]


def hat_sampling(sizes: Sizes) -> Callable[[], Tensor]:
    features, coords = sampling_inputs(sizes)
    return lambda: sample(features, coords, sizes.roi).transpose(1, 2)


def sampling_inputs(sizes: Sizes) -> tuple[Tensor, Tensor]:
    return torch.randn(1, sizes.neck, *(sizes.tokens,) * 3), sizes.roi * torch.rand(1, 32, 3)


def heads_at_each_click(sizes: Sizes) -> Callable[[], Tensor]:
    """The heads of all four levels in the decoder, as upstream has them."""
    heads, levels = head_inputs(sizes)

    def run() -> Tensor:
        for _ in range(CLICKS):
            answers = [head(level) for head, level in zip(heads, levels, strict=True)]
        return torch.cat(answers, dim=1)

    return run


def heads_in_the_encoder(sizes: Sizes) -> Callable[[], Tensor]:
    """Those of the levels that no prompt changes run once, and only their answers are kept: half as many channels."""
    heads, levels = head_inputs(sizes)

    def run() -> Tensor:
        answers = [head(level) for head, level in zip(heads, levels, strict=True)]
        for _ in range(CLICKS - 1):
            answers[-1] = heads[-1](levels[-1])
        return torch.cat(answers, dim=1)

    return run


def head_inputs(sizes: Sizes) -> tuple[list[AggregationHead], Tensor]:
    heads = [AggregationHead(sizes.neck, sizes.aggregation) for _ in range(FEATURE_LEVELS)]
    return heads, torch.randn(FEATURE_LEVELS, 1, sizes.neck, *(sizes.tokens,) * 3)


REWRITES: dict[str, tuple[Form, Form]] = {
    "folded stem": (plain_stem, folded_stem),  # the encoder up to its first block, but for adding positions
    "encoder with one block": (plain_first_block, rewritten_first_block),
    "columns for positions and shift mask": (plain_attention, joined_attention),
    "convolution of upsampled levels": (plain_upsampling, spread_taps),
    "hat-function sampling": (plain_sampling, hat_sampling),
    f"heads in the encoder, {CLICKS} clicks": (heads_at_each_click, heads_in_the_encoder),
}


def main(
    runs: Annotated[int, typer.Option(min=0, help="Timed runs after the first; 0 times the first.")] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    roi: Annotated[int, typer.Option(help="Voxels per side; 128 is the paper's, and needs 8 GB.")] = VIT_B.roi,
    only: Annotated[list[str] | None, typer.Option(help="Rewrites by their names.")] = None,
    record: Annotated[str, typer.Option(help="Name of the file in bench/results.")] = "rewrites",
) -> None:
    """A table, and bench/results/RECORD.json."""
    sizes = replace(VIT_B, roi=roi, tokens=roi // VIT_B.patch)
    title = f"plain / rewritten (times less); vit_b width, region of {roi}, {threads} threads"
    table, figures = Table("rewrite", "CPU, ms", "peak, MiB", "difference", title=title), {}
    for name, forms in REWRITES.items():
        if only and name not in only:
            continue
        plain, rewritten = (measured(form, sizes, runs, threads) for form in forms)
        difference = float((plain.answer - rewritten.answer).abs().max() / plain.answer.abs().max())
        figures[name] = {
            "plain_ms": round(plain.ms, 1),
            "rewritten_ms": round(rewritten.ms, 1),
            "plain_cpu_ms": round(plain.cpu_ms, 1),
            "rewritten_cpu_ms": round(rewritten.cpu_ms, 1),
            "plain_peak_mib": round(plain.peak_mib, 1),
            "rewritten_peak_mib": round(rewritten.peak_mib, 1),
            "relative_difference": float(f"{difference:.1e}"),
        }
        both = ((plain.cpu_ms, rewritten.cpu_ms), (plain.peak_mib, rewritten.peak_mib))
        table.add_row(name, *(f"{p:,.1f} / {r:,.1f} ({p / max(r, 0.1):.1f})" for p, r in both), f"{difference:.1e}")
    Console().print(table)
    write_record(record, "vit_b, random weights", {"roi": roi, "threads": threads, "runs": runs, "rewrites": figures})


def measured(form: Form, sizes: Sizes, runs: int, threads: int) -> Measured:
    """In a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ms, cpu_ms, peak, answer = pool.apply(timed, (form, sizes, runs, threads))
    return Measured(ms, cpu_ms, peak, torch.from_numpy(answer))


def timed(form: Form, sizes: Sizes, runs: int, threads: int) -> tuple[float, float, float, object]:
    """(median ms, median CPU ms, MiB that the resident set grew by, answer). The first run allocates: it is timed only
    where there is no other."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    with torch.inference_mode():
        run = form(sizes)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew, at what is held now
        before = memory_mib("self", "VmRSS")
        first, answer = clocked(run)
        grown = memory_mib("self", "VmHWM") - before
        times = [clocked(run)[0] for _ in range(runs)] or [first]
    wall, cpu = zip(*times, strict=True)
    return median(wall), median(cpu), grown, answer.contiguous().numpy()


def clocked(run: Callable[[], Tensor]) -> tuple[tuple[float, float], Tensor]:
    """((wall ms, CPU ms), answer)."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = run()
    return (1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)), answer


if __name__ == "__main__":
    typer.run(main)
