"""`python -m bench.rewrites`: what each exact rewrite saves against the plain form, both forms in one run. Needs torch.

Each form runs in a process of its own, so that its peak memory is its own: the growth of the resident set over what
stood before the run. Weights are random and shared by seed; the largest difference between the two answers is printed
beside the times, so that a form that computes something else cannot win. Runs in the export environment.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from bench.record import write_record
from contract.sizes import VIT_B, Sizes
from export.networks.attention import WindowAttention, shift_sides, windows
from export.networks.prompts import sample
from export.networks.stem import FoldedStem, fold
from export.networks.upsampled import tap_matrix, upsampled_conv

SEED = 7
MIB = 2**20
Form = Callable[[Sizes], Callable[[], Tensor]]


@dataclass(frozen=True)
class Measured:
    ms: float
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


def plain_attention(sizes: Sizes) -> Callable[[], Tensor]:
    """One shifted block's attention: relative positions added in five dimensions, a stored mask of -100."""
    attention, x = attention_inputs(sizes)
    window, heads, head = sizes.window, sizes.heads, sizes.width // sizes.heads
    sides = shift_sides(sizes.tokens, window)
    mask = -100.0 * (sides[:, :, None] != sides[:, None]).any(-1).float()
    offsets = attention.offsets

    def run() -> Tensor:
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

    return run


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


REWRITES: dict[str, tuple[Form, Form]] = {
    "folded stem": (plain_stem, folded_stem),
    "columns for positions and shift mask": (plain_attention, joined_attention),
    "convolution of upsampled levels": (plain_upsampling, spread_taps),
    "hat-function sampling": (plain_sampling, hat_sampling),
}


def main(
    runs: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    roi: Annotated[int, typer.Option(help="Voxels per side; 128 is the paper's, and needs 8 GB.")] = VIT_B.roi,
    only: Annotated[str | None, typer.Option(help="One rewrite by its name.")] = None,
) -> None:
    """A table, and bench/results/rewrites.json."""
    sizes = replace(VIT_B, roi=roi, tokens=roi // VIT_B.patch)
    columns = ("rewrite", "plain, ms", "rewritten, ms", "times faster", "plain, MiB", "rewritten, MiB", "difference")
    table, figures = Table(*columns, title=f"vit_b width, region of {roi}, float32 on {threads} CPU threads"), {}
    for name, forms in REWRITES.items():
        if only not in (None, name):
            continue
        plain, rewritten = (measured(form, sizes, runs, threads) for form in forms)
        difference = float((plain.answer - rewritten.answer).abs().max() / plain.answer.abs().max())
        row = {
            "plain_ms": round(plain.ms, 1),
            "rewritten_ms": round(rewritten.ms, 1),
            "plain_peak_mib": round(plain.peak_mib),
            "rewritten_peak_mib": round(rewritten.peak_mib),
            "relative_difference": float(f"{difference:.1e}"),
        }
        figures[name] = row
        times = [f"{row[key]:,}" for key in ("plain_ms", "rewritten_ms")]
        peaks = [f"{row[key]:,}" for key in ("plain_peak_mib", "rewritten_peak_mib")]
        table.add_row(name, *times, f"{plain.ms / rewritten.ms:.1f}", *peaks, f"{difference:.1e}")
    Console().print(table)
    write_record(
        "rewrites", "vit_b, random weights", {"roi": roi, "threads": threads, "runs": runs, "rewrites": figures}
    )


def measured(form: Form, sizes: Sizes, runs: int, threads: int) -> Measured:
    """In a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ms, peak, answer = pool.apply(timed, (form, sizes, runs, threads))
    return Measured(ms, peak, torch.from_numpy(answer))


def timed(form: Form, sizes: Sizes, runs: int, threads: int) -> tuple[float, float, object]:
    """(median ms, MiB that the resident set grew by, answer). The first run allocates and is not timed."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    with torch.inference_mode():
        run = form(sizes)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = run()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MIB
        times = []
        for _ in range(runs):
            started = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - started))
    return median(times), grown, answer.contiguous().numpy()


if __name__ == "__main__":
    typer.run(main)
