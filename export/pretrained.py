"""Public and trained weights into our networks, by the key names of the files that hold them.

`load_sam` reads SAM ViT-B (`sam_vit_b_01ec64.pth`), `load_clip_text` CLIP's text tower as OpenAI, open_clip and Hugging
Face name it, `load_tags` a checkpoint of TAGS or 3DSAM-adapter. Each wants every key that it uses and knows every key
that it passes over: a file with a key missing, unknown or of another shape is refused, and the model stays as it was.
Which keys those are, and what becomes of them, is in `upstream`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.networks.build import Tags
from export.networks.stem import SAM_PATCH
from export.upstream.decoder import PROMPTED_LEVEL, decoder_keys, decoder_parameters, prompt_keys
from export.upstream.encoder import (
    absorb_blend,
    adapted_keys,
    aligned_keys,
    encoder_parameters,
    trunk_keys,
    trunk_parameters,
)
from export.upstream.keys import PretrainedInvalid, prefixed, sorted_out
from export.upstream.text import from_hugging_face, hugging_face_keys, openai_keys
from export.weight_files import WeightsUnreadable, read_weights

SAM_PREFIX = "image_encoder."
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
