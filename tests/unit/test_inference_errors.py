"""Foreign errors become the engine's four: the maps are total, and no foreign text gets through."""

from __future__ import annotations

import grpc
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from tritonclient.utils import InferenceServerException

from service.errors import ModelBusy, ModelContractBroken, ModelNotReady, ModelTimeout
from service.inference.embedded import ORT_ERRORS
from service.inference.triton_errors import BY_STATUS, translated


def test_every_exception_of_onnx_runtime_has_its_place():
    exceptions = {kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert exceptions == set(ORT_ERRORS)


def test_every_grpc_status_has_its_place():
    assert set(BY_STATUS) == {str(code) for code in grpc.StatusCode} | {None}


# Texts as Triton 2.51 writes them.
@pytest.mark.parametrize(
    ("status", "text", "leaf"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: connection refused", ModelNotReady),
        ("UNAVAILABLE", "Request for unknown model: 'tags' has no available versions", ModelNotReady),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped", ModelNotReady),
        ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", ModelBusy),
        ("UNAVAILABLE", "[request id: <id_unknown>] Request timeout expired", ModelBusy),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", ModelTimeout),
        ("INVALID_ARGUMENT", "unexpected shape for input 'image' for model 'sam_encoder'", ModelContractBroken),
        ("INVALID_ARGUMENT", "unexpected datatype TYPE_FP64 for input 'image'", ModelContractBroken),
        ("NOT_FOUND", "Request for unknown model: 'tags' is not found", ModelContractBroken),
        ("INTERNAL", "Stub process 'sam_encoder_0_0' is not healthy.", ModelNotReady),
        ("INTERNAL", "inference failed: RuntimeException", ModelNotReady),
        ("SOMETHING_NEW", "", ModelNotReady),
    ],
)
def test_triton_is_understood(status, text, leaf):
    error = translated(InferenceServerException(text, status=f"StatusCode.{status}"), "sam_encoder", 2.5)
    assert type(error) is leaf
    assert "sam_encoder" in error.detail
    assert not text or text not in error.detail


def test_a_tensor_that_tritonclient_itself_refuses_breaks_the_contract():
    error = InferenceServerException("got unexpected datatype FP64 from numpy array, expected FP32")
    assert type(translated(error, "tags", 1)) is ModelContractBroken


def test_what_passes_by_itself_says_when_to_try_again():
    for status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
        error = translated(InferenceServerException("", status=f"StatusCode.{status}"), "tags", 1)
        assert error.retry_after_s == 5
    assert translated(InferenceServerException("", status="StatusCode.NOT_FOUND"), "tags", 1).retry_after_s is None
