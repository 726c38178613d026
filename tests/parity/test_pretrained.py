"""Upstream weight files: equal logits to the plain network, every key accounted for, wrong files named."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = pytest.mark.torch

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from contract.sizes import VIT_B  # noqa: E402
from contract.tensors import POINTS  # noqa: E402
from export.networks.build import build_tags  # noqa: E402
from export.pretrained import PretrainedInvalid, load_clip_text, load_sam, load_tags  # noqa: E402
from tests.parity import upstream_files as upstream  # noqa: E402
from tests.parity.little import LITTLE  # noqa: E402
from tests.parity.plain_tags import plain_logits  # noqa: E402

CLICKS = torch.tensor([[10.0, 21.0, 5.5], [3.0, 8.0, 30.0], [40.0, 2.0, 1.0]])  # the last lies outside


def saved(folder, document, name="weights.pth"):
    path = folder / name
    torch.save(document, path)
    return path


def logits(model, image, organ_mask, clicks):
    coords, labels = torch.zeros(1, POINTS, 3), torch.full((1, POINTS), -1, dtype=torch.int32)
    coords[0, : len(clicks)], labels[0, : len(clicks)] = clicks, 1
    half = image.shape[-1] // 2
    text = nn.functional.normalize(torch.randn(1, 2, model.sizes.width), dim=-1)
    with torch.inference_mode():
        embeddings = model.sam_encoder(image[None, None], organ_mask[None, None])
        mask, off = torch.zeros(1, 1, half, half, half), torch.zeros(1, 1)
        return model.fusion_decoder(*embeddings, text, coords, labels, mask, off)[0][0, 0]


@pytest.mark.parametrize("aligned", [True, False], ids=["TAGS", "3DSAM-adapter"])
def test_a_checkpoint_gives_the_logits_of_the_plain_network(tmp_path, aligned):
    torch.manual_seed(11)
    checkpoint = upstream.tags(LITTLE, upstream.random, aligned=aligned)
    image, organ_mask = torch.randn(32, 32, 32), (torch.rand(32, 32, 32) > 0.5).float()
    with torch.inference_mode():
        expected = plain_logits(checkpoint, LITTLE, image, organ_mask, CLICKS)
    model = build_tags(LITTLE).eval()
    load_tags(model, saved(tmp_path, checkpoint))
    found = logits(model, image, organ_mask, CLICKS)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
    assert (logits(model, image, organ_mask, CLICKS[:1]) - found).abs().max() > 1e-2, "clicks do not matter"


def test_every_axis_of_the_checkpoint_matters(tmp_path):
    """The comparison above would notice kernels or tables put on the wrong axis."""
    torch.manual_seed(12)
    checkpoint = upstream.tags(LITTLE, upstream.random)
    image, organ_mask = torch.randn(32, 32, 32), torch.zeros(32, 32, 32)
    model = build_tags(LITTLE).eval()
    load_tags(model, saved(tmp_path, checkpoint))
    right = logits(model, image, organ_mask, CLICKS)
    block, cls = model.sam_encoder.blocks[1], model.fusion_decoder.cls1
    for parameter, other in (
        (block.adapter.conv.weight, block.adapter.conv.weight.permute(0, 1, 3, 4, 2)),
        (cls.weight, cls.weight.permute(0, 1, 3, 2, 4)),
        (block.attn.rel_pos_d, block.attn.rel_pos_h),
    ):
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(other.detach().clone())
            assert (logits(model, image, organ_mask, CLICKS) - right).abs().max() > 1e-3
            parameter.copy_(kept)


@pytest.fixture(scope="module")
def vit_b():
    return build_tags(VIT_B)


def test_sam_vit_b_by_its_real_names(vit_b, tmp_path):
    document = upstream.sam(VIT_B)
    assert len(document) == 314
    report = load_sam(vit_b, saved(tmp_path, document, "sam_vit_b_01ec64.pth"))
    assert len(report.consumed) == 171
    assert report.consumed | report.ignored == set(document)
    assert all(key.startswith("image_encoder.") and ".neck." not in key for key in report.consumed)
    parts = {name.split(".")[1] for name in report.missing}
    assert parts == {"depth_embed", "blocks", "neck_3d", "alignment_adapters", "mlahead"}
    in_blocks = {".".join(name.split(".")[3:]) for name in report.missing if ".blocks." in name}
    assert in_blocks == {"attn.rel_pos_d"} | {
        f"adapter.{part}.{kind}" for part in ("linear1", "conv", "linear2") for kind in ("weight", "bias")
    }
    encoder = vit_b.sam_encoder
    assert torch.equal(encoder.depth_embed, torch.ones_like(encoder.depth_embed))
    assert torch.allclose(encoder.pos_embed, torch.tensor(0.01))
    block = encoder.blocks[2].attn
    assert torch.allclose(block.rel_pos_d, (block.rel_pos_h + block.rel_pos_w) / 2)
    # A constant patch kernel of 3 x 16 x 16 over the mean of 16 slices sums to itself: upsampling keeps sums.
    assert torch.allclose(encoder.patch_embed.proj.weight.sum((1, 2, 3, 4)), torch.tensor(3 * 256 * 0.01), rtol=1e-4)


@pytest.mark.parametrize("aligned", [True, False], ids=["TAGS", "3DSAM-adapter"])
def test_a_paper_size_checkpoint_by_its_real_names(vit_b, tmp_path, aligned):
    document = upstream.tags(VIT_B, aligned=aligned) | {"best_val_loss": np.float64(0.3)}
    report = load_tags(vit_b, saved(tmp_path, document, "best.pth.tar"))
    assert {"encoder_dict.pos_embed", "decoder_dict.cls.0.weight"} < report.consumed
    assert {"epoch", "best_val_loss", "encoder_dict.blocks.0.attn_mask"} < report.ignored
    assert not any(key.startswith(("feature_dict.0", "feature_dict.2")) for key in report.consumed)
    missing = {".".join(name.split(".")[:2]) for name in report.missing}
    parts = ("logit_scale", "prompt_encoder", "cls1", "coarse", "pyramid", "detail")
    expected = {f"fusion_decoder.{part}" for part in parts}
    assert missing == expected | (set() if aligned else {"sam_encoder.alignment_adapters"})
    left = {name.split("prompt_encoder.")[1] for name in report.missing if "prompt_encoder" in name}
    assert left == {"label_embed", "map_embed.weight", "text_token.weight", "text_token.bias"}


built = cache(build_tags)  # large text towers, made once for all layouts
CLIPS = {"ViT-L/14": (768, 768, 12), "ViT-B/16": (512, 512, 8), "ViT-B/32": (512, 512, 8)}


@pytest.mark.parametrize("layout", ["openai", "open_clip", "open_clip custom", "hugging face"])
@pytest.mark.parametrize(("width", "features", "heads"), CLIPS.values(), ids=CLIPS)
def test_clip_text_by_its_real_names(tmp_path, layout, width, features, heads):
    model = built(replace(LITTLE, width=768, heads=12, text_width=width, text_heads=heads, text_depth=12, depth=4))
    document = upstream.openai_text(width, features, depth=12)
    if layout == "openai":
        document |= {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    elif layout == "open_clip custom":
        document = {key if key.startswith(("visual.", "logit")) else f"text.{key}": v for key, v in document.items()}
    elif layout == "hugging face":
        document = upstream.hugging_face_text(document, depth=12)
    report = load_clip_text(model, saved(tmp_path, document))
    assert report.consumed | report.ignored == set(document)
    assert not any("vis" in key or "logit" in key for key in report.consumed)
    carried = features != model.sizes.width
    assert report.missing == ({"clip_text_embedder.text_projection"} if carried else set())


def test_every_layout_of_clip_gives_the_same_tower(tmp_path):
    torch.manual_seed(13)
    openai = upstream.openai_text(24, 32, depth=2, fill=upstream.random)
    custom = {key if key.startswith(("visual.", "logit")) else f"text.{key}": v for key, v in openai.items()}
    files = {
        "openai.pt": openai,
        "custom.pt": custom,
        "hf.bin": upstream.hugging_face_text(openai, depth=2),
        "half.pt": {key: value.half() for key, value in openai.items()},
    }
    paths = [saved(tmp_path, document, name) for name, document in files.items()]
    hugging_face = {key: value.contiguous() for key, value in files["hf.bin"].items()}
    save_file(hugging_face, tmp_path / "hf.safetensors")
    paths.append(archived(openai, tmp_path / "jit.pt"))
    towers = []
    for path in [*paths, tmp_path / "hf.safetensors"]:
        model = build_tags(LITTLE)
        load_clip_text(model, path)
        towers.append(model.clip_text_embedder)
    ids, eot = torch.randint(1, 49405, (1, 2, 77), dtype=torch.int32), torch.tensor([[5, 9]], dtype=torch.int32)
    with torch.inference_mode():
        first, *others = (tower(ids, eot)[0] for tower in towers)
    for path, other in zip(paths[1:], others, strict=False):
        assert torch.allclose(other, first, atol=2e-2 if path.name == "half.pt" else 1e-6), path.name


class Holder(nn.Module):
    """A module tree that holds tensors under dotted names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archived(weights, path):
    """The weights as a TorchScript archive, as OpenAI ships them."""
    root = Holder()
    for name, value in weights.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, Holder())
            module = getattr(module, parent)
        module.register_parameter(leaf, nn.Parameter(value.clone()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), path)
    return path


def test_a_torchscript_archive_is_read_without_its_code(tmp_path, monkeypatch):
    weights = upstream.openai_text(24, 32, depth=2, fill=upstream.random)
    path = archived(weights, tmp_path / "ViT-B-32.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_: pytest.fail("code of the archive was loaded"))
    report = load_clip_text(build_tags(LITTLE), path)
    assert report.consumed | report.ignored == set(weights)


class Harmful:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("load", [load_sam, load_clip_text, load_tags])
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path, load, capsys):
    torch.save({"weights": Harmful()}, tmp_path / "zip.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"weights": Harmful()}))
    for name in ("zip.pth", "plain.pkl"):
        with pytest.raises(PretrainedInvalid, match=f"{name} cannot be read"):
            load(build_tags(LITTLE), tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 and no more"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PretrainedInvalid, match=name) as refusal:
        load_sam(build_tags(LITTLE), tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("image_encoder.blocks.7.attn.qkv.bias"), r"blocks\.7\.attn\.qkv\.bias is missing"),
        (lambda weights: weights.update({"image_encoder.blocks.8.x": torch.ones(32)}), r"blocks\.8.* unknown"),
        (
            lambda weights: weights.update({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 40)}),
            r"\(1, 64, 64, 40\).*\(1, 64, 64, 32\)",
        ),
        (lambda weights: weights["image_encoder.blocks.0.norm1.weight"].fill_(float("nan")), "not finite"),
    ],
)  # fmt: skip
def test_a_wrong_sam_file_is_refused_by_name_and_shape_and_changes_nothing(tmp_path, change, words):
    torch.manual_seed(14)
    document, model = upstream.sam(LITTLE, upstream.random), build_tags(LITTLE)
    before = OrderedDict((name, value.clone()) for name, value in model.state_dict().items())
    change(document)
    with pytest.raises(PretrainedInvalid, match=words):
        load_sam(model, saved(tmp_path, document))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_files_of_one_kind_are_not_taken_for_another(vit_b, tmp_path):
    sam = saved(tmp_path, upstream.sam(VIT_B), "sam.pth")
    clip = saved(tmp_path, upstream.openai_text(768, 768, 12), "clip.pt")
    for load, path, kind in ((load_sam, clip, "SAM ViT-B"), (load_clip_text, sam, "CLIP"), (load_tags, sam, "TAGS")):
        with pytest.raises(PretrainedInvalid, match=f"not a file of {kind}"):
            load(vit_b, path)


def test_sam_vit_l_is_another_size(vit_b, tmp_path):
    large = replace(VIT_B, width=1024, depth=24, heads=16)
    with pytest.raises(PretrainedInvalid, match=r"another size of SAM ViT-B: .*pos_embed is \(1, 64, 64, 1024\)"):
        load_sam(vit_b, saved(tmp_path, upstream.sam(large)))


def test_relative_positions_of_which_the_scale_is_not_one_are_refused(tmp_path):
    document = upstream.tags(LITTLE)
    document["encoder_dict"]["blocks.3.attn.lr"] = torch.tensor(0.5)
    with pytest.raises(PretrainedInvalid, match=r"attn\.lr differs from 1"):
        load_tags(build_tags(LITTLE), saved(tmp_path, document))
