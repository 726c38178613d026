"""Each exact rewrite against the plain form that it replaces: folded stem, hat sampling, query and key columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from torch.nn import functional  # noqa: E402

from contract.sizes import SMALL, VIT_B  # noqa: E402
from contract.tensors import network_specs  # noqa: E402
from export.networks.attention import WindowAttention, centred_columns, shift_sides, unwindows, windows  # noqa: E402
from export.networks.build import build_tags  # noqa: E402
from export.networks.encoder import depth_to_space, space_to_depth  # noqa: E402
from export.networks.prompts import prompt_maps, sample  # noqa: E402
from export.networks.stem import FoldedStem, fold  # noqa: E402
from export.networks.upsampled import tap_matrix, upsampled_conv  # noqa: E402


@pytest.mark.parametrize("patch", [SMALL.patch, VIT_B.patch])
def test_the_folded_stem_equals_upsampling_then_patch_and_slice_embedding(patch):
    torch.manual_seed(3)
    size, width, factor = 4 * patch, 6, 16 // patch
    patch_weight, patch_bias = torch.randn(width, 3, 16, 16).double(), torch.randn(width).double()
    slice_weight, slice_bias = torch.randn(width, 16).double(), torch.randn(width).double()
    image, organ = torch.randn(2, 1, 1, size, size, size).double()

    volume = functional.interpolate(
        torch.cat([image, image, organ], 1), scale_factor=factor, mode="trilinear", align_corners=False
    )
    slices = volume[0].transpose(0, 1)  # (fine D, 3, H, W): slices as batch
    tokens = functional.conv2d(slices, patch_weight, patch_bias, stride=16)  # (fine D, E, T, T)
    tokens = tokens.reshape(-1, 16, *tokens.shape[1:])  # (T, 16, E, T, T)
    expected = (tokens * slice_weight.T[None, :, :, None, None]).sum(1) + slice_bias[:, None, None]

    stem = FoldedStem(patch, width).double()
    weight, bias = fold(patch_weight, patch_bias, slice_weight, slice_bias, patch)
    stem.load_state_dict({"proj.weight": weight, "proj.bias": bias})
    found = stem(image, organ)[0].permute(0, 3, 1, 2)  # (T, E, T, T)
    assert torch.allclose(found, expected, atol=1e-10)


def test_hat_sampling_equals_grid_sample_and_is_zero_outside():
    torch.manual_seed(4)
    features = torch.randn(2, 5, 4, 4, 4).double()
    coords = torch.rand(2, 9, 3).double() * 40 - 4  # some outside the 32-voxel region
    grid = (coords + 0.5) * 2 / 32 - 1
    expected = functional.grid_sample(
        features, grid.flip(-1)[:, :, None, None], mode="bilinear", padding_mode="zeros", align_corners=False
    )
    assert torch.allclose(sample(features, coords, 32), expected[..., 0, 0].transpose(1, 2), atol=1e-12)
    assert sample(features, torch.full((2, 1, 3), 100.0).double(), 32).abs().max() == 0


def test_a_cube_smaller_than_a_window_uses_the_middle_of_the_relative_positions():
    whole, small = WindowAttention(24, 3, 8).double(), WindowAttention(24, 3, 4).double()
    torch.manual_seed(0)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = whole.state_dict()
    small.load_state_dict({name: w[4:11] if name.startswith("rel_pos") else w for name, w in weights.items()})
    x, sides = torch.randn(2, 64, 24, dtype=torch.float64), shift_sides(4, 4).double()
    for shift in (None, sides):
        torch.testing.assert_close(whole(x, shift), small(x, shift), rtol=0, atol=1e-12)


@pytest.mark.parametrize("half_precision", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_extra_columns_equal_added_relative_positions_and_the_shift_mask(shifted, half_precision):
    torch.manual_seed(5)
    tokens, window, heads, head = 8, 4, 2, 8
    attention = WindowAttention(heads * head, heads, window, half_precision=half_precision).double()
    for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table)
    x = windows(torch.randn(2, tokens, tokens, tokens, heads * head).double(), window)

    q, k, v = attention.qkv(x).reshape(len(x), -1, 3, heads, head).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) * head**-0.5
    position = torch.cartesian_prod(*[torch.arange(window)] * 3)
    for axis, table in enumerate((attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)):
        offset = position[:, None, axis] - position[None, :, axis] + window - 1
        logits = logits + torch.einsum("nhqc,qkc->nhqk", q, table[offset])
    if shifted:
        region = torch.zeros(tokens, tokens, tokens)
        half = torch.tensor([0] * (tokens - window) + [1] * (window // 2) + [2] * (window // 2))
        region = 9 * half[:, None, None] + 3 * half[None, :, None] + half
        labels = windows(region[None, ..., None], window)[..., 0].repeat(2, 1)
        logits = logits - 100.0 * (labels[:, None, :, None] != labels[:, None, None, :])
    expected = (torch.softmax(logits, -1) @ v).transpose(1, 2).flatten(2)

    sides = shift_sides(tokens, window).double() if shifted else None
    assert torch.allclose(attention(x, sides), attention.proj(expected), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_columns_for_half_precision_leave_no_offset_and_fill_the_group(dtype):
    sides = shift_sides(8, 4)
    query, key = (columns.to(dtype).double() for columns in centred_columns(sides, present=88))
    assert query.shape[-1] == key.shape[-1] == 96 - 88
    added = query @ key.transpose(1, 2)
    alike = (sides[:, :, None] == sides[:, None]).all(-1)
    assert added[alike].abs().max() == 0
    assert added[~alike].max() == -98


def test_convolving_upsampled_channels_needs_no_upsampled_channels():
    torch.manual_seed(7)
    x, weight = torch.randn(2, 3, 4, 4, 4), torch.randn(5, 3, 3, 3, 3)
    upsampled = functional.interpolate(x, size=(16, 16, 16), mode="trilinear", align_corners=True)
    expected = functional.conv3d(upsampled, weight, padding=1)
    assert torch.allclose(upsampled_conv(x, weight, tap_matrix(4, 16)), expected, atol=1e-4)


def test_windows_and_sub_voxel_channels_are_undone_exactly():
    x = torch.arange(2 * 8**3 * 3.0).reshape(2, 8, 8, 8, 3)
    assert torch.equal(unwindows(windows(x, 4), 4, 8), x)
    image = torch.arange(2 * 6**3 * 1.0).reshape(2, 1, 6, 6, 6)
    cells = space_to_depth(image)
    assert torch.equal(depth_to_space(cells), image)
    assert cells[0, 4 * 1 + 2 * 0 + 1, 2, 1, 0] == image[0, 0, 5, 2, 1]
    assert torch.equal(cells.mean(1, keepdim=True), functional.avg_pool3d(image, 2))


def test_prompt_maps_put_clicks_boxes_and_labels_where_they_are():
    coords = torch.zeros(1, 32, 3)
    labels = torch.full((1, 32), -1, dtype=torch.int32)
    coords[0, 0], labels[0, 0] = torch.tensor([20.5, 4.5, 10.5]), 1
    coords[0, 1], labels[0, 1] = torch.tensor([2.5, 30.5, 12.5]), 0
    coords[0, 2], labels[0, 2] = torch.tensor([4.0, 6.0, 8.0]), 2
    coords[0, 3], labels[0, 3] = torch.tensor([11.0, 13.0, 21.0]), 3
    maps = prompt_maps(coords, labels, torch.zeros(1, 1, 32, 32, 32))[0]
    peaks = [tuple(int(i) for i in torch.unravel_index(m.argmax(), m.shape)) for m in maps[:4]]
    assert peaks == [(10, 2, 5)] * 2 + [(1, 15, 6)] * 2
    inside = maps[4] > 0.4  # a corner cell is 0.75 along each axis
    assert maps[4, 3, 4, 5] == 1
    assert inside[2:6, 3:7, 4:11].all()
    assert inside.sum() == 4 * 4 * 7
    assert maps[5].abs().max() == 0


@pytest.mark.parametrize("roi", [64, 32])
def test_every_network_keeps_the_contract_at_its_own_and_at_a_smaller_region(roi):
    sizes = replace(SMALL, window=4)
    model = build_tags(sizes).eval()
    specs = network_specs(replace(sizes, roi=roi, tokens=roi // sizes.patch))
    inputs = [torch.zeros(1, *spec.shape, dtype=getattr(torch, spec.dtype)) for spec in specs["tags"].inputs]
    with torch.no_grad():
        embeddings = model.sam_encoder(*inputs[:2])
        (text,) = model.clip_text_embedder(*inputs[2:4])
        outputs = model.fusion_decoder(*embeddings, text, *inputs[4:])
    for tensors, name in ((embeddings, "sam_encoder"), ((text,), "clip_text_embedder"), (outputs, "tags")):
        for tensor, spec in zip(tensors, specs[name].outputs, strict=True):
            assert tuple(tensor.shape[1:]) == spec.shape, spec.name


def test_absent_prompts_are_neutral_and_present_ones_are_not():
    torch.manual_seed(6)
    model = build_tags(SMALL).eval()
    for parameter in model.fusion_decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    roi = 64
    image, organ = torch.randn(1, 1, roi, roi, roi), torch.zeros(1, 1, roi, roi, roi)
    coords, labels = torch.zeros(1, 32, 3), torch.full((1, 32), -1, dtype=torch.int32)
    labels[0, 0], coords[0, 0] = 1, torch.tensor([30.0, 20.0, 40.0])
    mask, off, on = torch.zeros(1, 1, 32, 32, 32), torch.zeros(1, 1), torch.ones(1, 1)
    text = functional.normalize(torch.randn(1, 2, SMALL.width), dim=-1)

    with torch.no_grad():
        embeddings = model.sam_encoder(image, organ)

        def logits(text, coords, labels, mask, use):
            return model.fusion_decoder(*embeddings, text, coords, labels, mask, use)[0]

        plain = logits(text, coords, labels, mask, off)
        moved = coords.clone()
        moved[0, 5:] = 17.0  # padding slots: their place must not matter
        assert torch.allclose(logits(text.flip(1), moved, labels, mask, off), plain, atol=1e-4)
        for changed in (
            logits(text, coords, labels, mask, on),
            logits(text, coords, (1 - labels).clamp(max=1) * (labels >= 0) + labels * (labels < 0), mask, off),
            logits(text, coords, labels, mask + 1, off),
        ):
            assert (changed - plain).abs().max() > 1e-3
