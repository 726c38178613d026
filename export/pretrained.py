"""Public and trained weights into our networks, by the key names of the files that hold them.

`load_sam` reads SAM ViT-B (`sam_vit_b_01ec64.pth`), `load_clip_text` CLIP's text tower as OpenAI, open_clip and Hugging
Face name it, `load_tags` a checkpoint of TAGS or 3DSAM-adapter. Each wants every key that it uses and knows every key
that it passes over: a file with a key missing, unknown or of another shape is refused, and the model stays as it was.
Upstream's 3D kernels and tables run over H, W, D; ours over D, H, W.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from contract.sizes import Sizes
from contract.tensors import CONTEXT_LENGTH, FEATURE_LEVELS, VOCABULARY
from export.networks.build import Tags
from export.networks.decoder import SUB_VOXELS
from export.networks.encoder import ALIGN_BLEND
from export.networks.stem import SAM_PATCH, fold
from export.weight_files import WeightsUnreadable, read_weights

SAM_GRID = 64  # tokens per side of SAM's position embedding
SAM_WINDOW, SAM_GLOBAL = 27, 127  # rows of its relative position tables: windows of 14, and 64 in each third block
MLP_RATIO = 4
SAM_PREFIX = "image_encoder."
PROMPTED_LEVEL = 3  # of the four prompt encoders in a checkpoint, the only one that is used

SAM_IGNORED = re.compile(r"image_encoder\.neck\.|prompt_encoder\.|mask_decoder\.")
CLIP_IGNORED = re.compile(
    r"visual\.|vision_model\.|visual_projection\.|logit_scale$|logit_bias$|input_resolution$|context_length$"
    r"|vocab_size$|(text\.)?attn_mask$|text_model\.embeddings\.position_ids$"
)
TAGS_IGNORED = re.compile(
    r"encoder_dict\.blocks\.\d+\.attn_mask$|feature_dict\.[0-2]\."
    r"|feature_dict\.3\..*(cross_attn_token_to_image\.|positional_encoding_gaussian_matrix$)"
    r"|epoch$|best_val_loss$|(encoder|feature|decoder)_opt(\.|$)"
)
# Extensions of ours that a plain checkpoint knows nothing of; at zero they change nothing.
EXTENSIONS = (
    "fusion_decoder.prompt_encoder.label_embed",
    "fusion_decoder.prompt_encoder.map_embed.weight",
    "fusion_decoder.detail.weight",
    "fusion_decoder.detail.bias",
)

Shape = tuple[int, ...]
Wanted = dict[str, tuple[Shape, ...]]  # key in the file -> shapes that it may have


class PretrainedInvalid(ValueError):
    """The file is not what the loader reads, or its sizes are not the model's. One line that names the first fault."""


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's keys, and what of the networks it filled it did not hold."""

    consumed: frozenset[str]  # keys of the file that are now in the model
    ignored: frozenset[str]  # keys of the file that the model has no use for
    missing: frozenset[str]  # parameters of the model's networks that the file says nothing of

    def __str__(self) -> str:
        return (
            f"{len(self.consumed)} keys consumed, {len(self.ignored)} ignored, {len(self.missing)} parameters missing"
        )


def load_sam(model: Tags, path: Path) -> LoadReport:
    """SAM ViT-B's image encoder into `sam_encoder`, in place.

    What SAM lacks is set as 3DSAM-adapter starts: depth embedding 1, relative positions along depth the mean of the
    others, slice embedding the mean of the 16 upsampled slices (ours: theirs is random). Adapters, necks and heads keep
    what they have. Raises: PretrainedInvalid.
    """
    sizes = model.sizes
    wanted = prefixed(SAM_PREFIX, trunk_keys(sizes))
    weights, ignored = sorted_out(flat(path), wanted, SAM_IGNORED, "SAM ViT-B")
    trunk = {key.removeprefix(SAM_PREFIX): value for key, value in weights.items()}
    slices = torch.full((sizes.width, SAM_PATCH), 1 / SAM_PATCH), torch.zeros(sizes.width)
    filled = trunk_parameters(trunk, sizes, *slices)
    held = set(filled)
    filled["depth_embed"] = torch.ones(1, sizes.tokens, sizes.width)
    for block in range(sizes.depth):
        attention = f"blocks.{block}.attn."
        filled[f"{attention}rel_pos_d"] = (filled[f"{attention}rel_pos_h"] + filled[f"{attention}rel_pos_w"]) / 2
    fill(model, prefixed("sam_encoder.", filled))
    return LoadReport(frozenset(weights), ignored, lacking(model, ("sam_encoder.",), prefixed("sam_encoder.", held)))


def load_clip_text(model: Tags, path: Path) -> LoadReport:
    """CLIP's text tower into `clip_text_embedder`, in place. The layout is told by its keys.

    Where the file's features have another width than the model's (512 of B/32 and B/16 against 768), they are carried
    over by the projection that the model has: then `text_projection` is missing too, and the semantic map means nothing
    until it is trained. Raises: PretrainedInvalid.
    """
    sizes, document = model.sizes, flat(path)
    hugging_face = any(key.startswith("text_model.") for key in document)
    prefix = "text." if any(key.startswith("text.") for key in document) else ""
    wanted = hugging_face_keys(sizes) if hugging_face else prefixed(prefix, openai_keys(sizes))
    weights, ignored = sorted_out(document, wanted, CLIP_IGNORED, "CLIP's text tower")
    if hugging_face:
        tower = dict(from_hugging_face(weights, sizes))
    else:
        tower = {key.removeprefix(prefix).removeprefix("transformer."): value for key, value in weights.items()}
    filled = {
        re.sub(r"attn\.in_proj_(weight|bias)$", r"attn.in_proj.\1", key): value.float() for key, value in tower.items()
    }
    held = set(filled)
    if filled["text_projection"].shape[1] != sizes.width:
        filled["text_projection"] = filled["text_projection"] @ model.clip_text_embedder.text_projection.detach()
        held.remove("text_projection")
    part = "clip_text_embedder."
    fill(model, prefixed(part, filled))
    return LoadReport(frozenset(weights), ignored, lacking(model, (part,), prefixed(part, held)))


def load_tags(model: Tags, path: Path) -> LoadReport:
    """A checkpoint of TAGS, or of 3DSAM-adapter, into encoder and decoder, in place: the same logits as upstream's.

    Our extensions are set to zero, so that without text the answer is the plain network's. 3DSAM-adapter has no
    alignment adapters: their weights become zero and the factor 0.8 that remains of the blend is taken back out of the
    blocks, so the answer is equal there too. Raises: PretrainedInvalid.
    """
    sizes, document = model.sizes, nested(path)
    aligned = any(key.startswith("encoder_dict.alignment_adapters.") for key in document)
    wanted = (
        prefixed("encoder_dict.", trunk_keys(sizes) | adapted_keys(sizes) | (aligned_keys(sizes) if aligned else {}))
        | prefixed(f"feature_dict.{PROMPTED_LEVEL}.", prompt_keys(sizes))
        | prefixed("decoder_dict.", decoder_keys(sizes))
    )
    weights, ignored = sorted_out(document, wanted, TAGS_IGNORED, "TAGS or 3DSAM-adapter")
    parts = {
        name: {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}
        for name in ("encoder_dict.", f"feature_dict.{PROMPTED_LEVEL}.transformer.", "decoder_dict.")
    }
    encoder, prompts, decoder = parts.values()
    filled = prefixed("sam_encoder.", encoder_parameters(encoder, sizes))
    filled |= prefixed("fusion_decoder.prompt_encoder.", prompts) | dict(decoder_parameters(decoder))
    held = set(filled)
    filled |= {name: torch.zeros_like(model.get_parameter(name)) for name in EXTENSIONS}
    filled["fusion_decoder.cls1.bias"] = torch.zeros(sizes.aggregation)  # upstream has none
    filled["fusion_decoder.coarse.bias"] = torch.zeros(1)
    if not aligned:
        absorb_blend(filled, sizes)
    fill(model, filled)
    return LoadReport(frozenset(weights), ignored, lacking(model, ("sam_encoder.", "fusion_decoder."), held))


# Files and keys


def flat(path: Path) -> dict[str, Any]:
    try:
        return read_weights(path)
    except WeightsUnreadable as error:
        raise PretrainedInvalid(str(error)) from error


def nested(path: Path) -> dict[str, Any]:
    """Dictionaries and lists within the document, by dotted name: `encoder_dict.pos_embed`, `feature_dict.3.…`."""

    def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
        if inner is None or "_opt" in name:
            yield name, value
            return
        for key, item in inner:
            yield from leaves(item, f"{name}.{key}" if name else str(key))

    return dict(leaves(flat(path), ""))


def sorted_out(
    document: Mapping[str, Any], wanted: Wanted, ignored: re.Pattern[str], kind: str
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """(wanted tensors, names passed over). Raises: PretrainedInvalid naming the first key that is missing, unknown, of
    another shape, or not finite."""
    for key, shapes in wanted.items():
        value = document.get(key)
        if not isinstance(value, Tensor):
            raise PretrainedInvalid(f"not a file of {kind}: {key} is missing")
        if tuple(value.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise PretrainedInvalid(
                f"another size of {kind}: {key} is {tuple(value.shape)}, the model needs {expected}"
            )
        if not value.isfinite().all():
            raise PretrainedInvalid(f"damaged file of {kind}: {key} holds values that are not finite")
    rest = frozenset(document) - frozenset(wanted)
    unknown = sorted(key for key in rest if not ignored.match(key))
    if unknown:
        raise PretrainedInvalid(f"not a file of {kind}: {unknown[0]} is unknown, with {len(unknown) - 1} others")
    return {key: document[key].float() for key in wanted}, rest


def prefixed(prefix: str, names: Any) -> Any:
    """The mapping or set with `prefix` before each name."""
    if isinstance(names, Mapping):
        return {f"{prefix}{name}": value for name, value in names.items()}
    return {f"{prefix}{name}" for name in names}


def fill(model: Tags, filled: dict[str, Tensor]) -> None:
    """Copy into the model, all or nothing: a name or shape that does not fit is a fault of ours."""
    parameters = dict(model.named_parameters())
    for name, value in filled.items():
        if parameters[name].shape != value.shape:
            raise ValueError(f"{name}: {tuple(value.shape)} does not fit {tuple(parameters[name].shape)}")
    with torch.no_grad():
        for name, value in filled.items():
            parameters[name].copy_(value)


def lacking(model: Tags, parts: tuple[str, ...], held: set[str]) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(parts)) - held


def linear(name: str, out: int, inner: int) -> Wanted:
    return {f"{name}.weight": ((out, inner),), f"{name}.bias": ((out,),)}


def norm(name: str, width: int) -> Wanted:
    return {f"{name}.weight": ((width,),), f"{name}.bias": ((width,),)}


def merged(parts: Iterator[Wanted]) -> Wanted:
    return {key: shapes for part in parts for key, shapes in part.items()}


# The image encoder


def table_shapes(sizes: Sizes, block: int) -> tuple[Shape, ...]:
    """Of a relative position table: SAM attends globally in each third block."""
    return ((SAM_GLOBAL if (block + 1) % 3 == 0 else SAM_WINDOW, sizes.width // sizes.heads),)


def trunk_keys(sizes: Sizes) -> Wanted:
    """SAM's image encoder without its neck."""
    width = sizes.width

    def blocks() -> Iterator[Wanted]:
        for index in range(sizes.depth):
            block = f"blocks.{index}."
            yield norm(f"{block}norm1", width) | norm(f"{block}norm2", width)
            yield linear(f"{block}attn.qkv", 3 * width, width) | linear(f"{block}attn.proj", width, width)
            yield {f"{block}attn.rel_pos_{axis}": table_shapes(sizes, index) for axis in "hw"}
            yield linear(f"{block}mlp.lin1", MLP_RATIO * width, width)
            yield linear(f"{block}mlp.lin2", width, MLP_RATIO * width)

    return {
        "pos_embed": ((1, SAM_GRID, SAM_GRID, width),),
        "patch_embed.proj.weight": ((width, 3, SAM_PATCH, SAM_PATCH),),
        "patch_embed.proj.bias": ((width,),),
    } | merged(blocks())


def adapted_keys(sizes: Sizes) -> Wanted:
    """What 3DSAM-adapter adds to the encoder."""
    width, hidden, neck = sizes.width, sizes.adapter, sizes.neck

    def parts() -> Iterator[Wanted]:
        yield {"depth_embed": ((1, sizes.tokens, width),)}
        yield {"slice_embed.weight": ((width, 1, 1, 1, SAM_PATCH),), "slice_embed.bias": ((width,),)}
        for index in range(sizes.depth):
            block = f"blocks.{index}."
            yield linear(f"{block}adapter.linear1", hidden, width) | linear(f"{block}adapter.linear2", width, hidden)
            yield {f"{block}adapter.conv.weight": ((hidden, 1, 3, 3, 3),), f"{block}adapter.conv.bias": ((hidden,),)}
            yield {f"{block}attn.rel_pos_d": table_shapes(sizes, index), f"{block}attn.lr": ((), (1,))}
        for level in range(FEATURE_LEVELS):
            yield {f"neck_3d.{level}.0.weight": ((neck, width, 1, 1, 1),)}
            yield {f"neck_3d.{level}.2.weight": ((neck, neck, 3, 3, 3),)}
            yield norm(f"neck_3d.{level}.1", neck) | norm(f"neck_3d.{level}.3", neck)

    return merged(parts())


def aligned_keys(sizes: Sizes) -> Wanted:
    """What TAGS adds to the encoder."""
    shape = (sizes.width, sizes.width)
    return {f"alignment_adapters.{level}.fc1.0.weight": (shape,) for level in range(FEATURE_LEVELS)}


def trunk_parameters(
    trunk: Mapping[str, Tensor], sizes: Sizes, slice_weight: Tensor, slice_bias: Tensor
) -> dict[str, Tensor]:
    """SAM's part of our encoder: the stem folded, positions pooled, relative positions at our window's length."""
    weight, bias = fold(
        trunk["patch_embed.proj.weight"], trunk["patch_embed.proj.bias"], slice_weight, slice_bias, sizes.patch
    )
    pooled = functional.avg_pool2d(trunk["pos_embed"].permute(0, 3, 1, 2), SAM_GRID // sizes.tokens)
    filled = {"patch_embed.proj.weight": weight, "patch_embed.proj.bias": bias, "pos_embed": pooled.permute(0, 2, 3, 1)}
    for key, value in trunk.items():
        if key.startswith("blocks.") and ".rel_pos_" not in key:
            filled[key] = value
        elif key.startswith("blocks."):
            filled[key] = relative_positions(value, sizes.window)
    return filled


def relative_positions(table: Tensor, window: int) -> Tensor:
    """(L, d) interpolated to (2 window - 1, d), as upstream does at every forward pass."""
    return functional.interpolate(table.T[None], size=2 * window - 1, mode="linear", align_corners=False)[0].T


def encoder_parameters(encoder: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """Raises: PretrainedInvalid: `lr` is not 1. It scales relative positions and was never trained; what another value
    would mean is not known."""
    if not all(bool((value == 1).all()) for key, value in encoder.items() if key.endswith(".attn.lr")):
        raise PretrainedInvalid("an attn.lr differs from 1, at which it is frozen in TAGS and 3DSAM-adapter")
    trunk = {key: encoder[key] for key in trunk_keys(sizes)}
    slices = encoder["slice_embed.weight"].flatten(1), encoder["slice_embed.bias"]
    filled = trunk_parameters(trunk, sizes, *slices) | {"depth_embed": encoder["depth_embed"]}
    names = {".0.weight": ".conv1.weight", ".2.weight": ".conv2.weight"}
    for key, value in encoder.items():
        if ".adapter." in key:
            filled[key] = depth_first(value) if key.endswith("conv.weight") else value
        elif key.endswith("rel_pos_d"):
            filled[key] = relative_positions(value, sizes.window)
        elif key.startswith("alignment_adapters."):
            filled[key.replace("fc1.0", "fc1")] = value
        elif key.startswith("neck_3d."):
            level, _, rest = key.removeprefix("neck_3d.").partition(".")
            name = names.get(f".{rest}") or f".norm{(int(rest[0]) + 1) // 2}{rest[1:]}"
            filled[f"neck_3d.{level}{name}"] = depth_first(value) if value.ndim == 5 else value
    return filled


def depth_first(kernel: Tensor) -> Tensor:
    """(O, I, H, W, D) to (O, I, D, H, W)."""
    return kernel.permute(0, 1, 4, 2, 3)


def absorb_blend(filled: dict[str, Tensor], sizes: Sizes) -> None:
    """No alignment: 0.8 x + 0.2 a with a = 0 leaves the stream 0.8 times as large after each level. What a block adds
    to it shrinks likewise; norms do not see the factor (but for their epsilon), ReLU keeps it. In place."""
    stage = sizes.depth // FEATURE_LEVELS
    for level in range(FEATURE_LEVELS):
        filled[f"sam_encoder.alignment_adapters.{level}.fc1.weight"] = torch.zeros(sizes.width, sizes.width)
    for index in range(stage, sizes.depth):
        scale, block = (1 - ALIGN_BLEND) ** (index // stage), f"sam_encoder.blocks.{index}."
        filled[f"{block}adapter.linear1.weight"] = filled[f"{block}adapter.linear1.weight"] / scale
        for name in ("adapter.linear2", "attn.proj", "mlp.lin2"):
            for kind in ("weight", "bias"):
                filled[f"{block}{name}.{kind}"] = filled[f"{block}{name}.{kind}"] * scale


# The decoder


def prompt_keys(sizes: Sizes) -> Wanted:
    """3DSAM-adapter's prompt transformer."""
    width = sizes.neck

    def layers() -> Iterator[Wanted]:
        for index in range(2):
            layer = f"transformer.layers.{index}."
            yield {f"{layer}global_query": ((1, sizes.queries, width),)}
            for attention, inner in (("self_attn", width), ("cross_attn_image_to_token", width // 2)):
                for role in "qkv":
                    yield linear(f"{layer}{attention}.{role}_proj", inner, width)
                yield linear(f"{layer}{attention}.out_proj", width, inner)
            for number in range(1, 5):
                yield norm(f"{layer}norm{number}", width)
            yield linear(f"{layer}mlp.lin1", sizes.prompt_mlp, width)
            yield linear(f"{layer}mlp.lin2", width, sizes.prompt_mlp)

    return merged(layers())


def decoder_keys(sizes: Sizes) -> Wanted:
    neck, channels = sizes.neck, sizes.aggregation
    heads = {f"mlahead.head{level + 2}.0.weight": ((channels, neck, 3, 3, 3),) for level in range(FEATURE_LEVELS)}
    heads |= {f"mlahead.head{level + 2}.3.weight": ((channels, channels, 3, 3, 3),) for level in range(FEATURE_LEVELS)}
    inputs = FEATURE_LEVELS * channels + 1  # the levels, and the image on the half grid
    return heads | {"cls.0.weight": ((channels, inputs, 3, 3, 3),), "cls.3.weight": ((2, channels, 3, 3, 3),)}


def decoder_parameters(decoder: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Heads of the first levels stand in our encoder, that of the prompted one in the decoder. Upstream's image on the
    half grid is the mean of our eight sub-voxel channels; its two logits are our one, foreground minus background."""
    for level in range(FEATURE_LEVELS):
        head = f"sam_encoder.mlahead.{level}" if level < PROMPTED_LEVEL else "fusion_decoder.mlahead"
        for place, name in ((0, "conv1"), (3, "conv2")):
            yield f"{head}.{name}.weight", depth_first(decoder[f"mlahead.head{level + 2}.{place}.weight"])
    mixed, logits = depth_first(decoder["cls.0.weight"]), depth_first(decoder["cls.3.weight"])
    image = (mixed[:, -1:] / SUB_VOXELS).expand(-1, SUB_VOXELS, -1, -1, -1)
    yield "fusion_decoder.cls1.weight", torch.cat([mixed[:, :-1], image, torch.zeros_like(mixed[:, :1])], dim=1)
    yield "fusion_decoder.coarse.weight", logits[1:] - logits[:1]


# The text tower


def openai_keys(sizes: Sizes) -> Wanted:
    """OpenAI's names, also open_clip's. Features as wide as the model's tokens, or as the tower (B/32, B/16)."""
    width = sizes.text_width

    def blocks() -> Iterator[Wanted]:
        for index in range(sizes.text_depth):
            block = f"transformer.resblocks.{index}."
            yield norm(f"{block}ln_1", width) | norm(f"{block}ln_2", width)
            yield {f"{block}attn.in_proj_weight": ((3 * width, width),), f"{block}attn.in_proj_bias": ((3 * width,),)}
            yield linear(f"{block}attn.out_proj", width, width)
            yield linear(f"{block}mlp.c_fc", MLP_RATIO * width, width)
            yield linear(f"{block}mlp.c_proj", width, MLP_RATIO * width)

    return {
        "token_embedding.weight": ((VOCABULARY, width),),
        "positional_embedding": ((CONTEXT_LENGTH, width),),
        "text_projection": ((width, sizes.width), (width, width)),
    } | merged(iter((norm("ln_final", width), *blocks())))


def hugging_face_keys(sizes: Sizes) -> Wanted:
    width = sizes.text_width

    def layers() -> Iterator[Wanted]:
        for index in range(sizes.text_depth):
            layer = f"text_model.encoder.layers.{index}."
            for role in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield linear(f"{layer}self_attn.{role}", width, width)
            yield norm(f"{layer}layer_norm1", width) | norm(f"{layer}layer_norm2", width)
            yield linear(f"{layer}mlp.fc1", MLP_RATIO * width, width)
            yield linear(f"{layer}mlp.fc2", width, MLP_RATIO * width)

    return {
        "text_model.embeddings.token_embedding.weight": ((VOCABULARY, width),),
        "text_model.embeddings.position_embedding.weight": ((CONTEXT_LENGTH, width),),
        "text_projection.weight": ((sizes.width, width), (width, width)),
    } | merged(iter((norm("text_model.final_layer_norm", width), *layers())))


def from_hugging_face(weights: Mapping[str, Tensor], sizes: Sizes) -> Iterator[tuple[str, Tensor]]:
    """Under OpenAI's names: q, k and v joined, the projection transposed."""
    embeddings = "text_model.embeddings."
    yield "token_embedding.weight", weights[f"{embeddings}token_embedding.weight"]
    yield "positional_embedding", weights[f"{embeddings}position_embedding.weight"]
    yield "text_projection", weights["text_projection.weight"].T
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names |= {"self_attn.out_proj": "attn.out_proj"}
    for kind in ("weight", "bias"):
        yield f"ln_final.{kind}", weights[f"text_model.final_layer_norm.{kind}"]
        for index in range(sizes.text_depth):
            layer, block = f"text_model.encoder.layers.{index}.", f"resblocks.{index}."
            joined = [weights[f"{layer}self_attn.{role}_proj.{kind}"] for role in "qkv"]
            yield f"{block}attn.in_proj_{kind}", torch.cat(joined)
            for theirs, ours in names.items():
                yield f"{block}{ours}.{kind}", weights[f"{layer}{theirs}.{kind}"]
