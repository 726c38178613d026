"""The embedded engine: ONNX Runtime on the CPU, in the gateway's own process.

Concurrency: two lanes, each one thread and a bounded queue. The heavy lane runs the encoder and the decoder, one call
at a time with all of `threads`, since two at once are slower than one after the other. The text lane keeps the text
embedder, and so the canary, from waiting behind them. Sessions are thread-safe and never change after loading.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from contract.bundle import Bundle
from contract.tensors import CLIP_TEXT_EMBEDDER, FUSION_DECODER, NETWORKS, SAM_ENCODER, NetworkSpec, network_specs
from service.domain.prompts import PlacedPrompts
from service.errors import ModelContractBroken, ModelNotReady, ModelUnavailable
from service.inference.engine import Embeddings
from service.inference.lane import Lane
from service.inference.tensors import (
    Tensors,
    check_contract,
    checked,
    decoder_tensors,
    embeddings_from,
    image_tensors,
    logits_from,
    text_tensors,
    zeros,
)
from service.inference.text_cache import TextCache

# Every exception class of ONNX Runtime; they share no base class.
ORT_ERRORS: dict[type[Exception], type[ModelUnavailable]] = {
    ort_errors.InvalidArgument: ModelContractBroken,
    ort_errors.InvalidGraph: ModelContractBroken,
    ort_errors.InvalidProtobuf: ModelContractBroken,
    ort_errors.NotImplemented: ModelContractBroken,
    ort_errors.NoModel: ModelNotReady,
    ort_errors.NoSuchFile: ModelNotReady,
    ort_errors.NotFound: ModelNotReady,
    ort_errors.ModelLoaded: ModelNotReady,
    ort_errors.ModelLoadCanceled: ModelNotReady,
    ort_errors.ModelRequiresCompilation: ModelNotReady,
    ort_errors.DeviceReset: ModelNotReady,
    ort_errors.EPFail: ModelNotReady,
    ort_errors.EngineError: ModelNotReady,
    ort_errors.Fail: ModelNotReady,
    ort_errors.RuntimeException: ModelNotReady,  # out of memory among others
}
NUMPY_NAMES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int32)": "int32"}
ORT_SEVERITY_ERROR = 3


class EmbeddedEngine:
    """Implements `Engine`. Every network call raises ModelBusy, ModelNotReady or ModelContractBroken."""

    def __init__(self, bundle: Bundle, *, threads: int, max_waiting: int) -> None:
        """Load the three networks (0.3 s for `small`; blocks). Args: threads: for one heavy call. max_waiting: calls
        that may wait beside the one that runs. Raises: ModelNotReady, ModelContractBroken."""
        self._bundle = bundle
        self._specs = network_specs(bundle.sizes)
        per_network = {SAM_ENCODER: threads, FUSION_DECODER: threads, CLIP_TEXT_EMBEDDER: 1}
        self._sessions = {name: _load(bundle, self._specs[name], per_network[name]) for name in NETWORKS}
        heavy, text = Lane("networks", max_waiting=max_waiting), Lane("text", max_waiting=max_waiting)
        self._lanes = {SAM_ENCODER: heavy, FUSION_DECODER: heavy, CLIP_TEXT_EMBEDDER: text}
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
        return await self.decode(await self.encode(image, organ_mask), prompts)

    async def check(self) -> None:
        await self._call(CLIP_TEXT_EMBEDDER, zeros(self._specs[CLIP_TEXT_EMBEDDER].inputs))

    async def close(self) -> None:
        for lane in set(self._lanes.values()):
            await lane.close()

    async def _call(self, network: str, inputs: Tensors) -> Tensors:
        options = ort.RunOptions()

        def stop() -> None:
            options.terminate = True  # ONNX Runtime looks at it between two nodes of the graph

        work = partial(_run, self._sessions[network], self._specs[network], inputs, options)
        return await self._lanes[network].run(work, stop=stop)


def _load(bundle: Bundle, spec: NetworkSpec, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The arena never gives memory back: 680 MB instead of 350 MB resident after one case, and no faster here.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = ORT_SEVERITY_ERROR
    # Idle threads would spin on the cores that the event loop and the DICOM readers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(bundle.onnx_path(spec.name)), options, providers=["CPUExecutionProvider"])
    except tuple(ORT_ERRORS) as error:
        raise _translated(error, spec.name, "could not be loaded") from error
    tensors = (*session.get_inputs(), *session.get_outputs())
    check_contract(spec, {t.name: (NUMPY_NAMES.get(t.type, t.type), tuple(t.shape[1:])) for t in tensors})
    return session


def _run(session: ort.InferenceSession, spec: NetworkSpec, inputs: Tensors, options: ort.RunOptions) -> Tensors:
    """One network call, in a lane's thread."""
    feeds = checked(spec.name, spec.inputs, inputs)
    try:
        values = session.run([tensor.name for tensor in spec.outputs], feeds, options)
    except tuple(ORT_ERRORS) as error:
        raise _translated(error, spec.name, "failed in ONNX Runtime") from error
    outputs = {tensor.name: value for tensor, value in zip(spec.outputs, values, strict=True)}
    return checked(spec.name, spec.outputs, outputs)


def _translated(error: Exception, network: str, what: str) -> ModelUnavailable:
    return ORT_ERRORS[type(error)](f"{network} {what}; the operator finds the bundle's state with `tags capabilities`")
