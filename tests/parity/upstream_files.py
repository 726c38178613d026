"""Weight files made up with exactly the names and shapes of the public ones, at any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from contract.sizes import Sizes

Fill = Callable[..., Tensor]  # shape to values


def random(*shape: int) -> Tensor:
    """Values at which no layer dies or explodes."""
    if len(shape) > 1:
        return torch.randn(shape) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
    return 0.2 * torch.randn(shape)


def hollow(*shape: int) -> Tensor:
    """One stored number, whatever the shape: a file of any size takes a few bytes."""
    return torch.full((), 0.01).expand(shape)


def norm(name: str, width: int, fill: Fill) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + fill(width), f"{name}.bias": fill(width)}


def linear(name: str, shape: tuple[int, ...], fill: Fill) -> dict[str, Tensor]:
    return {f"{name}.weight": fill(*shape), f"{name}.bias": fill(shape[0])}


def trunk(sizes: Sizes, fill: Fill) -> dict[str, Tensor]:
    width, head = sizes.width, sizes.width // sizes.heads
    weights = {"pos_embed": fill(1, 64, 64, width)} | linear("patch_embed.proj", (width, 3, 16, 16), fill)
    for index in range(sizes.depth):
        block, rows = f"blocks.{index}", 127 if index in (2, 5, 8, 11) else 27
        weights |= norm(f"{block}.norm1", width, fill) | norm(f"{block}.norm2", width, fill)
        weights |= linear(f"{block}.attn.qkv", (3 * width, width), fill)
        weights |= linear(f"{block}.attn.proj", (width, width), fill)
        weights |= {f"{block}.attn.rel_pos_h": fill(rows, head), f"{block}.attn.rel_pos_w": fill(rows, head)}
        weights |= linear(f"{block}.mlp.lin1", (4 * width, width), fill)
        weights |= linear(f"{block}.mlp.lin2", (width, 4 * width), fill)
    return weights


def sam(sizes: Sizes, fill: Fill = hollow) -> dict[str, Tensor]:
    """`sam_vit_b_01ec64.pth`: 314 tensors at ViT-B's size."""
    weights = {f"image_encoder.{key}": value for key, value in trunk(sizes, fill).items()}
    neck = {"0.weight": (256, sizes.width, 1, 1), "2.weight": (256, 256, 3, 3)}
    neck |= {f"{place}.{kind}": (256,) for place in (1, 3) for kind in ("weight", "bias")}
    weights |= {f"image_encoder.neck.{key}": fill(*shape) for key, shape in neck.items()}
    return weights | {key: fill(2) for key in sam_unused()}


def sam_unused() -> list[str]:
    """Names of SAM's prompt encoder and mask decoder, 137 tensors, which nothing of ours reads."""
    names = ["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    names += [f"prompt_encoder.{part}.weight" for part in ("not_a_point_embed", "no_mask_embed")]
    names += [f"prompt_encoder.point_embeddings.{index}.weight" for index in range(4)]
    names += pairs(f"prompt_encoder.mask_downscaling.{index}" for index in (0, 1, 3, 4, 6))
    decoder = "mask_decoder"
    names += [f"{decoder}.iou_token.weight", f"{decoder}.mask_tokens.weight"]
    roles = [f"{role}_proj" for role in ("q", "k", "v", "out")]
    attentions = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    for layer in (f"{decoder}.transformer.layers.{index}" for index in (0, 1)):
        names += pairs(f"{layer}.{attention}.{role}" for attention in attentions for role in roles)
        names += pairs(f"{layer}.{part}" for part in ("norm1", "norm2", "norm3", "norm4", "mlp.lin1", "mlp.lin2"))
    names += pairs(f"{decoder}.transformer.final_attn_token_to_image.{role}" for role in roles)
    names += pairs([f"{decoder}.transformer.norm_final_attn"])
    names += pairs(f"{decoder}.output_upscaling.{index}" for index in (0, 1, 3))
    names += pairs(f"{decoder}.output_hypernetworks_mlps.{m}.layers.{index}" for m in range(4) for index in range(3))
    return names + pairs(f"{decoder}.iou_prediction_head.layers.{index}" for index in range(3))


def pairs(names: Iterable[str]) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def tags(sizes: Sizes, fill: Fill = hollow, *, aligned: bool = True) -> dict[str, Any]:
    """`best.pth.tar` of TAGS, or of 3DSAM-adapter without alignment."""
    width, hidden, neck, head = sizes.width, sizes.adapter, sizes.neck, sizes.width // sizes.heads
    encoder = trunk(sizes, fill) | {"depth_embed": fill(1, sizes.tokens, width)}
    encoder |= linear("slice_embed", (width, 1, 1, 1, 16), fill)
    for index in range(sizes.depth):
        block, rows = f"blocks.{index}", 127 if index in (2, 5, 8, 11) else 27
        encoder |= linear(f"{block}.adapter.linear1", (hidden, width), fill)
        encoder |= linear(f"{block}.adapter.conv", (hidden, 1, 3, 3, 3), fill)
        encoder |= linear(f"{block}.adapter.linear2", (width, hidden), fill)
        encoder |= {f"{block}.attn.rel_pos_d": fill(rows, head), f"{block}.attn.lr": torch.tensor(1.0)}
        if index % 2 == 0:
            windows, length = (sizes.tokens // sizes.window) ** 3, sizes.window**3
            encoder[f"{block}.attn_mask"] = hollow(windows, length, length)
    for level in range(4):
        encoder |= {f"neck_3d.{level}.0.weight": fill(neck, width, 1, 1, 1)}
        encoder |= {f"neck_3d.{level}.2.weight": fill(neck, neck, 3, 3, 3)}
        encoder |= norm(f"neck_3d.{level}.1", neck, fill) | norm(f"neck_3d.{level}.3", neck, fill)
        if aligned:
            encoder[f"alignment_adapters.{level}.fc1.0.weight"] = fill(width, width)
    channels = sizes.aggregation
    decoder = {f"mlahead.head{i}.0.weight": fill(channels, neck, 3, 3, 3) for i in range(2, 6)}
    decoder |= {f"mlahead.head{i}.3.weight": fill(channels, channels, 3, 3, 3) for i in range(2, 6)}
    decoder |= {"cls.0.weight": fill(channels, 4 * channels + 1, 3, 3, 3), "cls.3.weight": fill(2, channels, 3, 3, 3)}
    return {
        "epoch": 199,
        "best_val_loss": 0.5,
        "encoder_dict": encoder,
        "feature_dict": [prompts(sizes, fill) for _ in range(4)],
        "decoder_dict": decoder,
        "encoder_opt": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "feature_opt": {"state": {}, "param_groups": []},
        "decoder_opt": {"state": {}, "param_groups": []},
    }


def prompts(sizes: Sizes, fill: Fill) -> dict[str, Tensor]:
    width, weights = sizes.neck, {"pe_layer.positional_encoding_gaussian_matrix": fill(3, sizes.neck // 2)}
    for index in range(2):
        layer = f"transformer.layers.{index}"
        weights |= {f"{layer}.global_query": fill(1, sizes.queries, width)}
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            inner = width if attention == "self_attn" else width // 2
            for role in "qkv":
                weights |= linear(f"{layer}.{attention}.{role}_proj", (inner, width), fill)
            weights |= linear(f"{layer}.{attention}.out_proj", (width, inner), fill)
        for number in range(1, 5):
            weights |= norm(f"{layer}.norm{number}", width, fill)
        weights |= linear(f"{layer}.mlp.lin1", (sizes.prompt_mlp, width), fill)
        weights |= linear(f"{layer}.mlp.lin2", (width, sizes.prompt_mlp), fill)
    return weights


def openai_text(width: int, features: int, depth: int, fill: Fill = hollow) -> dict[str, Tensor]:
    """The text tower as OpenAI names it, and one tensor of the image tower."""
    weights = {
        "token_embedding.weight": fill(49408, width),
        "positional_embedding": fill(77, width),
        "text_projection": fill(width, features),
        "logit_scale": fill(),
        "visual.transformer.resblocks.0.ln_1.weight": fill(1024),
        "visual.proj": fill(1024, features),
    } | norm("ln_final", width, fill)
    for index in range(depth):
        block = f"transformer.resblocks.{index}"
        weights |= norm(f"{block}.ln_1", width, fill) | norm(f"{block}.ln_2", width, fill)
        weights |= {f"{block}.attn.in_proj_weight": fill(3 * width, width)}
        weights |= {f"{block}.attn.in_proj_bias": fill(3 * width)}
        weights |= linear(f"{block}.attn.out_proj", (width, width), fill)
        weights |= linear(f"{block}.mlp.c_fc", (4 * width, width), fill)
        weights |= linear(f"{block}.mlp.c_proj", (width, 4 * width), fill)
    return weights


def hugging_face_text(openai: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The same tower as Hugging Face's CLIPModel names it."""
    weights = {
        "text_model.embeddings.token_embedding.weight": openai["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": openai["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_model.final_layer_norm.weight": openai["ln_final.weight"],
        "text_model.final_layer_norm.bias": openai["ln_final.bias"],
        "text_projection.weight": openai["text_projection"].T,
        "logit_scale": openai["logit_scale"],
        "vision_model.post_layernorm.weight": openai["visual.transformer.resblocks.0.ln_1.weight"],
        "visual_projection.weight": openai["visual.proj"].T,
    }
    for index in range(depth):
        block, layer = f"transformer.resblocks.{index}", f"text_model.encoder.layers.{index}"
        for kind in ("weight", "bias"):
            joined = openai[f"{block}.attn.in_proj_{kind}"].chunk(3)
            for role, value in zip(("q", "k", "v"), joined, strict=True):
                weights[f"{layer}.self_attn.{role}_proj.{kind}"] = value
            names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            for ours, theirs in names.items():
                weights[f"{layer}.{theirs}.{kind}"] = openai[f"{block}.{ours}.{kind}"]
    return weights
