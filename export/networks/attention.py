"""Shifted window attention in 3D with decomposed relative positions, as plain matrix products.

Relative positions and the shift mask enter as extra columns of queries and keys (exact), so there are no
5-dimensional additions and no stored 512 x 512 masks:
    Q' = [q / sqrt(d) | rel_d | rel_h | rel_w | sqrt(50) * side]     K' = [k | one-hot of kd, kh, kw | sqrt(50) * side]
`side` is +-1 per axis: tokens that the shift brought together from opposite borders differ in sign and lose 100.

That leaves 150 on the logits of all others, which softmax does not see, but half precision does: near 150 its steps are
0.125. `centred_columns` are the same columns for half precision: one more takes the offset out within the product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SEPARATION = 50.0  # half of the logit distance between tokens of different shift regions
CENTRED_SIDE = 7.0  # of which square (49) and triple are exact in float16 and bfloat16
COLUMN_GROUP = 32  # matrix units read rows in groups: 64 + 24 + 4 columns are filled up to 96


def windows(x: Tensor, window: int) -> Tensor:
    """(B, D, H, W, C) to (B * number of windows, window**3, C)."""
    batch, depth, height, width, channels = x.shape
    x = x.reshape(batch, depth // window, window, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window**3, channels)


def unwindows(x: Tensor, window: int, tokens: int) -> Tensor:
    """Inverse of `windows` for a cube of `tokens` per side."""
    n, channels = tokens // window, x.shape[-1]
    x = x.reshape(-1, n, n, n, window, window, window, channels)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, tokens, tokens, tokens, channels)


def shift_sides(tokens: int, window: int) -> Tensor:
    """(number of windows, window**3, 3): -1 where a token came round the border by the shift, else +1, per axis."""
    axis = torch.ones(tokens)
    axis[tokens - window // 2 :] = -1
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    return windows(grid[None], window)


def centred_columns(sides: Tensor, present: int) -> tuple[Tensor, Tensor]:
    """Columns of queries and of keys, each (number of windows, window**3, columns), for half precision.

    Their product is 0 for tokens of one shift region and -98 or less for others. Zeros fill them up to a whole group.
    Args: sides: from `shift_sides`. present: columns that stand before them.
    """
    scaled, one = CENTRED_SIDE * sides, torch.ones_like(sides[..., :1])
    filling = sides.new_zeros(*sides.shape[:2], -(present + 4) % COLUMN_GROUP)
    query = torch.cat([scaled, -3 * CENTRED_SIDE * one, filling], dim=-1)
    return query, torch.cat([scaled, CENTRED_SIDE * one, filling], dim=-1)


def one_hot_positions(window: int) -> Tensor:
    """(window**3, 3 * window): one-hot of each token's d, h and w inside its window."""
    eye = torch.eye(window)
    index = torch.cartesian_prod(*[torch.arange(window)] * 3)
    return torch.cat([eye[index[:, axis]] for axis in range(3)], dim=1)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows of `window`**3 tokens."""

    def __init__(self, width: int, heads: int, window: int, *, half_precision: bool = False) -> None:
        """Args: half_precision: the graph may run in float16 or bfloat16 (see `centred_columns`)."""
        super().__init__()
        self.heads, self.window, self.head_width = heads, window, width // heads
        self.half_precision = half_precision
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        tables = torch.zeros(3, 2 * window - 1, self.head_width)
        self.rel_pos_d, self.rel_pos_h, self.rel_pos_w = (nn.Parameter(table) for table in tables)
        offsets = torch.arange(window)[:, None] - torch.arange(window)[None] + window - 1
        self.register_buffer("offsets", offsets, persistent=False)  # (query, key) -> row of a table
        self.register_buffer("positions", one_hot_positions(window), persistent=False)

    def relative(self, q: Tensor, w: int) -> Tensor:
        """(N, w**3, d) unscaled queries to (N, w**3, 3 * w) logits per key position and axis."""
        n, d = q.shape[0], self.head_width
        cube = q.reshape(n, w, w, w, d)
        columns = []
        for axis, table in enumerate((self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)):
            keys = table[self.offsets[:w, :w]].transpose(1, 2)  # (query position, d, key position)
            lead = cube.permute(axis + 1, 0, *[i for i in (1, 2, 3) if i != axis + 1], 4).reshape(w, n * w * w, d)
            part = torch.bmm(lead, keys).transpose(0, 1)  # (n * w * w, query position, key position)
            part = part.reshape(n, w, w, w, w).permute(0, *[(3, 1, 2), (1, 3, 2), (1, 2, 3)][axis], 4)
            columns.append(part.reshape(n, w**3, w))
        return torch.cat(columns, dim=-1)

    def forward(self, x: Tensor, sides: Tensor | None) -> Tensor:
        """x: (windows, w**3, E); sides: (windows, w**3, 3) from `shift_sides`, or None without a shift.

        w is `window`, or smaller when training on a region that has fewer tokens per side.
        """
        n, length, width = x.shape
        whole = length == self.window**3
        window = self.window if whole else round(length ** (1 / 3))
        positions = self.positions if whole else one_hot_positions(window).to(x)
        q, k, v = (
            self.qkv(x).reshape(n, length, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4).reshape(
                3, n * self.heads, length, self.head_width
            )
        )  # each (windows * heads, length, d)  # fmt: skip
        query = [q * self.head_width**-0.5, self.relative(q, window)]
        key = [k, positions.expand(n * self.heads, -1, -1)]
        if sides is not None:
            scaled = SEPARATION**0.5 * sides
            present = self.head_width + 3 * window
            columns = centred_columns(sides, present) if self.half_precision else (scaled, scaled)
            for matrix, column in zip((query, key), columns, strict=True):
                column = column.repeat_interleave(self.heads, dim=0)
                matrix.append(column.repeat(n * self.heads // column.shape[0], 1, 1))
        weights = torch.softmax(torch.cat(query, -1) @ torch.cat(key, -1).transpose(1, 2), dim=-1)
        out = (weights @ v).reshape(n, self.heads, length, self.head_width).transpose(1, 2)
        return self.proj(out.reshape(n, length, width))
