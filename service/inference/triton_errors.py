"""What Triton, gRPC and tritonclient may say, as the four errors of an engine: one table and one function.

The texts are Triton's own (2.51, tried); their words decide, but never enter an answer.
"""

from __future__ import annotations

from tritonclient.utils import InferenceServerException

from service.errors import ModelBusy, ModelContractBroken, ModelNotReady, ModelTimeout, ModelUnavailable

BY_STATUS: dict[str | None, type[ModelUnavailable]] = {
    None: ModelContractBroken,  # raised by tritonclient itself: it could not build or read the tensors
    "StatusCode.OK": ModelContractBroken,
    "StatusCode.INVALID_ARGUMENT": ModelContractBroken,  # names, dtypes or shapes
    "StatusCode.NOT_FOUND": ModelContractBroken,  # no such model
    "StatusCode.OUT_OF_RANGE": ModelContractBroken,
    "StatusCode.UNIMPLEMENTED": ModelContractBroken,  # not a Triton, or a decoupled model
    "StatusCode.ALREADY_EXISTS": ModelContractBroken,
    "StatusCode.DEADLINE_EXCEEDED": ModelTimeout,
    "StatusCode.RESOURCE_EXHAUSTED": ModelBusy,
    "StatusCode.UNAVAILABLE": ModelNotReady,  # refused, reset, shutting down
    "StatusCode.INTERNAL": ModelNotReady,  # the model's own code failed, or its stub died
    "StatusCode.CANCELLED": ModelNotReady,  # by the server, when it stops
    "StatusCode.UNKNOWN": ModelNotReady,
    "StatusCode.ABORTED": ModelNotReady,
    "StatusCode.DATA_LOSS": ModelNotReady,
    "StatusCode.FAILED_PRECONDITION": ModelNotReady,
    "StatusCode.PERMISSION_DENIED": ModelNotReady,
    "StatusCode.UNAUTHENTICATED": ModelNotReady,
}
# Triton says these with a status that means something else for others.
BY_TEXT: dict[str, type[ModelUnavailable]] = {
    "Exceeds maximum queue size": ModelBusy,
    "Request timeout expired": ModelBusy,
    "has no available versions": ModelNotReady,  # loading, or its load failed
    "is not ready": ModelNotReady,
}
DETAILS: dict[type[ModelUnavailable], str] = {
    ModelNotReady: "Triton cannot run {model} now; the operator should look at the server",
    ModelBusy: "Triton's queue for {model} is full",
    ModelTimeout: "Triton did not answer for {model} within {timeout_s:g} s",
    ModelContractBroken: "Triton's {model} does not take or give the tensors of this bundle; deploy the bundle that "
    "belongs to this gateway",
}


def translated(error: InferenceServerException, model: str, timeout_s: float) -> ModelUnavailable:
    """The domain error for whatever tritonclient raised during a call of `model`."""
    text = error.message() or ""
    leaf = next((leaf for words, leaf in BY_TEXT.items() if words in text), None)
    leaf = leaf or BY_STATUS.get(error.status(), ModelNotReady)
    return leaf(DETAILS[leaf].format(model=model, timeout_s=timeout_s))
