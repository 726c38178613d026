"""The Triton engine: the same networks on a Triton server, over gRPC from the event loop.

Concurrency: calls run side by side up to a limit, beyond which ModelBusy is said at once; Triton queues and batches.
Recovery: one channel for the engine's life. gRPC reconnects by itself, within a second of the server's return; after
any failure the contract is verified anew before the next call, since another server may have come back.
Decisions: docs/decisions/0006-engines.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from opentelemetry.trace import SpanKind, Tracer
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from contract.bundle import Bundle, onnx_file
from contract.tensors import CLIP_TEXT_EMBEDDER, ENSEMBLE, FUSION_DECODER, SAM_ENCODER, NetworkSpec, network_specs
from service.domain.prompts import PlacedPrompts
from service.errors import ModelBusy, ModelContractBroken, ModelNotReady, ModelUnavailable
from service.inference.engine import Embeddings
from service.inference.tensors import (
    Declared,
    Tensors,
    check_contract,
    checked,
    decoder_tensors,
    embeddings_from,
    image_tensors,
    logits_from,
    prompt_tensors,
    text_tensors,
    zeros,
)
from service.inference.text_cache import TextCache
from service.inference.triton_errors import translated
from service.telemetry.tracing import OFF, TRACEPARENT, current_traceparent, span

MESSAGE_BYTES = 2**31 - 1  # gRPC's own ceiling; features of `vit_b` are 130 MB, the default limit is 4 MB
CANARY_TIMEOUT_S = 5.0
RECONNECT_MS = 250  # first wait between attempts to reconnect
MAX_RECONNECT_MS = 1000  # gRPC's default of two minutes would outlast every restart
KEEPALIVE_TIMEOUT_MS = 10_000
MIN_KEEPALIVE_MS = 20_000
# An inference changes nothing, so that a call which a stopping server refused or broke off may be sent again: to
# another replica where there is one, twice within a second. A stopping server is gone for some calls, and for others,
# whose models it has unloaded, still there: they are NOT_FOUND. The throttle ends that when half of all calls fail.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.25s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "NOT_FOUND"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
}
RETRY_BUFFER_BYTES = 256 * 1024**2  # a call is kept until it is answered; those beyond are not sent again


class TritonEngine:
    """Implements `Engine`. Every network call raises ModelBusy, ModelTimeout, ModelNotReady or ModelContractBroken."""

    def __init__(self, bundle: Bundle, *, url: str, timeout_s: float, max_waiting: int, tracer: Tracer = OFF) -> None:
        """Nothing is sent yet. Args: url: host and gRPC port. timeout_s: for one network call, waiting in Triton's
        queue included. max_waiting: calls that may be under way at once. tracer: its spans go on in Triton's own,
        where that is configured to trace."""
        self._tracer = tracer
        self._bundle = bundle
        self._specs = network_specs(bundle.sizes)
        self._url, self._timeout_s, self._max_waiting = url, timeout_s, max_waiting
        self._client: InferenceServerClient | None = None
        self._closed = False
        self._under_way = 0
        self._verified = False  # the server was compared with the bundle since the last failure
        self._suspects: set[str] = set()  # models whose last call failed on the server's side
        self._texts = TextCache()

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    async def encode(self, image: np.ndarray, organ_mask: np.ndarray) -> Embeddings:
        return embeddings_from(await self._call(SAM_ENCODER, image_tensors(image, organ_mask)))

    async def embed_text(self, phrases: tuple[str, str]) -> np.ndarray:
        if (known := self._texts.get(phrases)) is not None:
            return known
        outputs = await self._call(CLIP_TEXT_EMBEDDER, text_tensors(phrases))
        return self._texts.put(phrases, outputs["text_features"][0])

    async def decode(self, embeddings: Embeddings, prompts: PlacedPrompts) -> np.ndarray:
        text_features = await self.embed_text(prompts.phrases)
        inputs = decoder_tensors(embeddings, text_features, prompts)
        return logits_from(await self._call(FUSION_DECODER, inputs))

    async def segment(self, image: np.ndarray, organ_mask: np.ndarray, prompts: PlacedPrompts) -> np.ndarray:
        inputs = image_tensors(image, organ_mask) | text_tensors(prompts.phrases) | prompt_tensors(prompts)
        return logits_from(await self._call(ENSEMBLE, inputs))

    async def check(self) -> None:
        """A canary through the text embedder, and through each network whose last call failed on the server: Triton
        calls itself ready even when a model's process is dead."""
        for model in sorted({CLIP_TEXT_EMBEDDER, *self._suspects}):
            timeout_s = CANARY_TIMEOUT_S if model == CLIP_TEXT_EMBEDDER else self._timeout_s
            with self._watched(model, timeout_s):
                await self._infer(model, zeros(self._specs[model].inputs), min(timeout_s, self._timeout_s))

    async def close(self) -> None:
        self._closed = True
        if self._client is not None:
            await self._client.close()

    async def _call(self, model: str, inputs: Tensors) -> Tensors:
        if self._under_way >= self._max_waiting:
            raise ModelBusy(f"{self._under_way} network calls are under way; try again later")
        self._under_way += 1
        known = {"rpc.system": "grpc", "tags.model": model}
        try:
            with (
                span(self._tracer, "triton", kind=SpanKind.CLIENT, attributes=known),
                self._watched(model, self._timeout_s),
            ):
                return await self._infer(model, inputs, self._timeout_s)
        finally:
            self._under_way -= 1

    @contextmanager
    def _watched(self, model: str, timeout_s: float) -> Iterator[None]:
        """Translate foreign errors, and remember what has to be verified or canaried after a failure."""
        try:
            yield
        except InferenceServerException as error:
            self._verified = False
            leaf = translated(error, model, timeout_s)
            if isinstance(leaf, ModelNotReady):
                self._suspects.add(model)
            raise leaf from error
        except ModelUnavailable:
            self._verified = False
            raise
        self._suspects.discard(model)

    async def _infer(self, model: str, inputs: Tensors, timeout_s: float) -> Tensors:
        """One inference within `timeout_s`, the server verified before the first."""
        spec = self._specs[model]
        requested = [InferRequestedOutput(tensor.name) for tensor in spec.outputs]
        sent = await asyncio.to_thread(_to_triton, spec, inputs)
        client = self._connected()
        if not self._verified:
            await self._verify(client, timeout_s)
        # `timeout` (microseconds) lets the server drop it from a queue when this caller has given up.
        traceparent = current_traceparent()
        result = await client.infer(
            model,
            sent,
            outputs=requested,
            client_timeout=timeout_s,
            timeout=int(timeout_s * 1e6),
            headers={TRACEPARENT: traceparent} if traceparent else None,
        )
        return await asyncio.to_thread(_from_triton, spec, result)

    def _connected(self) -> InferenceServerClient:
        """The client, made on first use: a gRPC channel belongs to the event loop that is running then."""
        if self._closed:
            raise ModelNotReady("the engine is closed")
        if self._client is None:
            self._client = InferenceServerClient(self._url, channel_args=_channel_options(self._timeout_s))
        return self._client

    async def _verify(self, client: InferenceServerClient, timeout_s: float) -> None:
        """Compare what the server declares with the bundle: names, dtypes and shapes of each model, and the digest of
        each network's weights where the export wrote it into the configuration. Raises: ModelContractBroken."""
        for model, spec in self._specs.items():
            metadata = await client.get_model_metadata(model, client_timeout=timeout_s)
            tensors = (*metadata.inputs, *metadata.outputs)
            check_contract(spec, {t.name: _declared(t.datatype, t.shape) for t in tensors})
            configuration = await client.get_model_config(model, client_timeout=timeout_s)
            digest = configuration.config.parameters["onnx_sha256"].string_value
            if digest and digest != self._bundle.files.get(onnx_file(model)):
                raise ModelContractBroken(f"Triton's {model} holds other weights than {self._bundle.identity}")
        self._verified = True


def _channel_options(timeout_s: float) -> list[tuple[str, int | str]]:
    """Keepalive notices a host that vanished without a word (a lost node), which would otherwise hold the connection
    for a quarter of an hour. At most two pings per call: Triton closes a connection that pings more without data."""
    return [
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", MAX_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        ("grpc.keepalive_time_ms", max(MIN_KEEPALIVE_MS, int(timeout_s * 1000 / 2))),
        ("grpc.enable_http_proxy", 0),  # the server is a neighbour; a site's proxy for the outside would swallow calls
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
    ]


def _declared(datatype: str, shape: list[int]) -> Declared:
    """Triton's metadata of one tensor as the contract writes it; the first axis is the batch."""
    dtype = triton_to_np_dtype(datatype)
    return (datatype if dtype is None else np.dtype(dtype).name), tuple(shape[1:])


def _to_triton(spec: NetworkSpec, inputs: Tensors) -> list[InferInput]:
    sent = []
    for name, array in checked(spec.name, spec.inputs, inputs).items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        sent.append(tensor)
    return sent


def _from_triton(spec: NetworkSpec, result: InferResult) -> Tensors:
    received = {tensor.name: result.as_numpy(tensor.name) for tensor in spec.outputs}
    return checked(spec.name, spec.outputs, {name: array for name, array in received.items() if array is not None})
