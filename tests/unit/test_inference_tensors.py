"""Tensors at the networks' border are held to the contract."""

from __future__ import annotations

import numpy as np
import pytest

from contract.sizes import CONFIGURATIONS, SMALL
from contract.tensors import CLIP_TEXT_EMBEDDER, ENSEMBLE, FUSION_DECODER, SAM_ENCODER, network_specs
from service.domain.prompts import PlacedPrompts
from service.errors import ModelContractBroken
from service.inference.tensors import (
    check_contract,
    checked,
    decoder_tensors,
    embeddings_from,
    image_tensors,
    prompt_tensors,
    text_tensors,
    zeros,
)

SPECS = network_specs(SMALL)
PROMPTS = PlacedPrompts(
    point_coords=np.zeros((32, 3), np.float32),
    point_labels=np.full(32, -1, np.int32),
    mask_prompt=np.zeros((1, 32, 32, 32), np.float32),
    use_text=1.0,
    phrases=("a scan without liver tumour.", "a scan of a liver tumour."),
)


def test_what_is_built_from_domain_types_fits_every_network():
    image = np.zeros((64, 64, 64), np.float32)
    for_image, for_text = image_tensors(image, image), text_tensors(PROMPTS.phrases)
    embeddings = embeddings_from(zeros(SPECS[SAM_ENCODER].outputs))
    for_decoder = decoder_tensors(embeddings, np.zeros((2, 192), np.float32), PROMPTS)
    whole = for_image | for_text | prompt_tensors(PROMPTS)
    for network, tensors in (
        (SAM_ENCODER, for_image),
        (CLIP_TEXT_EMBEDDER, for_text),
        (FUSION_DECODER, for_decoder),
        (ENSEMBLE, whole),
    ):
        assert list(checked(network, SPECS[network].inputs, tensors)) == [t.name for t in SPECS[network].inputs]


def test_embeddings_cannot_be_changed_by_a_decode():
    embeddings = embeddings_from(zeros(SPECS[SAM_ENCODER].outputs))
    with pytest.raises(ValueError, match="read-only"):
        embeddings.tensors["feat_0"][0] = 1


@pytest.mark.parametrize(
    ("replacement", "said"),
    [
        (None, "sam_encoder: image is missing"),
        (np.zeros((1, 1, 64, 64, 64)), "expected float32"),
        (np.zeros((1, 1, 64, 64, 32), np.float32), "64, 64, 32"),
        (np.zeros((2, 1, 64, 64, 64), np.float32), "image has batch 2 instead of 1"),
        (np.full((1, 1, 64, 64, 64), np.nan, np.float32), "image holds values that are not finite"),
    ],
    ids=["missing", "dtype", "shape", "batch", "not finite"],
)
def test_a_tensor_that_breaks_the_contract_is_named(replacement, said):
    tensors = zeros(SPECS[SAM_ENCODER].inputs)
    del tensors["image"]
    if replacement is not None:
        tensors["image"] = replacement
    with pytest.raises(ModelContractBroken, match=said):
        checked(SAM_ENCODER, SPECS[SAM_ENCODER].inputs, tensors)


def declared(network, configuration="small"):
    spec = network_specs(CONFIGURATIONS[configuration])[network]
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in (*spec.inputs, *spec.outputs)}


@pytest.mark.parametrize("network", SPECS)
def test_an_engine_that_declares_the_contract_is_accepted(network):
    check_contract(SPECS[network], declared(network))


def test_a_symbolic_axis_is_left_to_the_check_of_each_answer():
    dtype, (channels, *_) = declared(SAM_ENCODER)["image_detail"]
    check_contract(SPECS[SAM_ENCODER], declared(SAM_ENCODER) | {"image_detail": (dtype, (channels, "d", "h", "w"))})


def test_an_engine_of_another_configuration_is_refused():
    with pytest.raises(ModelContractBroken, match="sam_encoder: image should be float32"):
        check_contract(SPECS[SAM_ENCODER], declared(SAM_ENCODER, "vit_b"))


def test_an_absent_and_a_surplus_tensor_are_refused():
    wanting = declared(FUSION_DECODER)
    del wanting["mask_prompt"]
    with pytest.raises(ModelContractBroken, match="the engine has no mask_prompt"):
        check_contract(SPECS[FUSION_DECODER], wanting)
    with pytest.raises(ModelContractBroken, match="does not know extra"):
        check_contract(SPECS[FUSION_DECODER], declared(FUSION_DECODER) | {"extra": ("float32", (1,))})
