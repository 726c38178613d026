"""`config.pbtxt` of the three networks and of the ensemble `tags`, generated from the contract.

A network is a Python-backend model on the CPU (`triton_model.py`) or a TensorRT plan on a GPU; the ensemble chains
them by tensor name. Shapes exclude the batch axis, as Triton wants where `max_batch_size` is above 0. What the text
says is what the gateway's Triton engine relies on, so everything is checked when the value is made, not when the
server starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from contract.tensors import ENSEMBLE, NETWORKS, NetworkSpec, TensorSpec
from export.pbtxt import Symbol, Value, pbtxt

MAX_BATCH = 4  # regions of interest in one run: about 1 GB of attention matrices for `small`
THREADS = 2  # per model; the machine of the product's time budget has 2 cores
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32"}
LATEST_ONLY = {"latest": {"num_versions": 1}}


@dataclass(frozen=True)
class Queue:
    """How requests wait for a model: joined into batches, refused when too many wait or one waits too long."""

    preferred_batches: tuple[int, ...] = (2, MAX_BATCH)
    max_delay_us: int = 500  # far below one run, enough to join regions that one request sends at once
    timeout_us: int = 30_000_000  # a caller has given up by then; allow_timeout_override lets it ask for less
    max_waiting: int = 16  # 16 regions are half a minute of work on 2 cores: more is refused (UNAVAILABLE)

    def __post_init__(self) -> None:
        if not all(1 <= size <= MAX_BATCH for size in self.preferred_batches):
            raise ValueError(f"preferred batches must lie in 1..{MAX_BATCH}")
        if self.max_delay_us < 0 or self.timeout_us <= self.max_delay_us or self.max_waiting < 1:
            raise ValueError("a queue needs 0 <= max_delay_us < timeout_us and room for at least one request")

    def message(self) -> Mapping[str, Value]:
        return {
            "preferred_batch_size": self.preferred_batches,
            "max_queue_delay_microseconds": self.max_delay_us,
            "default_queue_policy": policy(self.max_waiting, self.timeout_us),
        }


@dataclass(frozen=True)
class NetworkModel:
    """The Triton model of one network. `bundle` and `onnx_sha256` let a client see which weights a server holds."""

    spec: NetworkSpec
    bundle: str  # name and version
    onnx_sha256: str
    threads: int = THREADS
    queue: Queue = Queue()

    def __post_init__(self) -> None:
        if self.spec.name not in NETWORKS:
            raise ValueError(f"{self.spec.name} is none of {', '.join(NETWORKS)}")
        if self.threads < 1:
            raise ValueError("a model needs at least one thread")
        check_tensors(self.spec)

    def text(self) -> str:
        return pbtxt(
            {
                "name": self.spec.name,
                "backend": "python",
                "max_batch_size": MAX_BATCH,
                "version_policy": LATEST_ONLY,
                "input": [tensor_message(tensor) for tensor in self.spec.inputs],
                "output": [tensor_message(tensor) for tensor in self.spec.outputs],
                "instance_group": [{"count": 1, "kind": Symbol("KIND_CPU")}],
                "dynamic_batching": self.queue.message(),
                "model_warmup": [warmup(self.spec, batch=1)],
                "parameters": parameters(threads=str(self.threads), bundle=self.bundle, onnx_sha256=self.onnx_sha256),
            }
        )


@dataclass(frozen=True)
class Serving:
    """How plans share a GPU. A click that someone waits for (priority 1) goes before a batch job (2, the default)."""

    most_batch: int = MAX_BATCH  # of the plans' profiles
    instances: int = 1  # of each network; a second one overlaps copies with work, and takes its memory again
    in_flight: int = 8  # regions inside the ensemble at once: each holds its features, 154 MB for `vit_b`
    urgent_waiting: int = 16
    batch_waiting: int = 64
    urgent_timeout_us: int = 10_000_000
    batch_timeout_us: int = 120_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.most_batch <= MAX_BATCH:
            raise ValueError(f"the largest batch must lie in 1..{MAX_BATCH}")
        if min(self.instances, self.in_flight, self.urgent_waiting, self.batch_waiting) < 1:
            raise ValueError("instances, regions in flight and queues must be at least 1")

    def batching(self) -> Mapping[str, Value]:
        """Two priorities, each with a bounded queue of its own."""
        batch, urgent = (
            policy(self.batch_waiting, self.batch_timeout_us),
            policy(self.urgent_waiting, self.urgent_timeout_us),
        )
        return {
            "max_queue_delay_microseconds": Queue.max_delay_us,
            "priority_levels": 2,
            "default_priority_level": 2,
            "default_queue_policy": batch,
            "priority_queue_policy": [{"key": 1, "value": urgent}],
        }


def policy(max_waiting: int, timeout_us: int) -> Mapping[str, Value]:
    return {
        "timeout_action": Symbol("REJECT"),
        "default_timeout_microseconds": timeout_us,
        "allow_timeout_override": True,
        "max_queue_size": max_waiting,
    }


@dataclass(frozen=True)
class PlanModel:
    """The Triton model of one network's TensorRT plan, on each GPU that the server sees."""

    spec: NetworkSpec
    bundle: str
    onnx_sha256: str
    serving: Serving = Serving()

    def __post_init__(self) -> None:
        if self.spec.name not in NETWORKS:
            raise ValueError(f"{self.spec.name} is none of {', '.join(NETWORKS)}")
        check_tensors(self.spec)

    def text(self) -> str:
        serving = self.serving
        group = {
            "count": serving.instances,
            "kind": Symbol("KIND_GPU"),
            # Obeyed with --rate-limit=execution_count; how many run at once is --rate-limit-resource=run:COUNT.
            "rate_limiter": {"resources": [{"name": "run", "count": 1}]},
        }
        return pbtxt(
            {
                "name": self.spec.name,
                "platform": "tensorrt_plan",
                "default_model_filename": "model.plan",
                "max_batch_size": serving.most_batch,
                "version_policy": LATEST_ONLY,
                "input": [tensor_message(tensor) for tensor in self.spec.inputs],
                "output": [tensor_message(tensor) for tensor in self.spec.outputs],
                "instance_group": [group],
                "dynamic_batching": serving.batching(),
                "optimization": {
                    "cuda": {"graphs": True},
                    "input_pinned_memory": {"enable": True},
                    "output_pinned_memory": {"enable": True},
                },
                "model_warmup": [warmup(self.spec, batch) for batch in sorted({1, serving.most_batch})],
                "parameters": parameters(bundle=self.bundle, onnx_sha256=self.onnx_sha256),
            }
        )


@dataclass(frozen=True)
class EnsembleModel:
    """The ensemble: its own interface and the networks it runs, in order; tensors of one name are one tensor."""

    spec: NetworkSpec
    steps: tuple[NetworkSpec, ...]
    bundle: str
    most_batch: int = MAX_BATCH
    in_flight: int | None = None  # requests inside at once; needs a Triton that knows the field

    def __post_init__(self) -> None:
        check_tensors(self.spec)
        known = {tensor.name: tensor for tensor in self.spec.inputs}
        for step in self.steps:
            for tensor in step.inputs:
                if known.get(tensor.name) != tensor:
                    raise ValueError(f"{step.name} needs {tensor}, which nothing before it gives")
            known |= {tensor.name: tensor for tensor in step.outputs}
        for tensor in self.spec.outputs:
            if known.get(tensor.name) != tensor:
                raise ValueError(f"no step gives the ensemble's output {tensor}")

    def text(self) -> str:
        scheduling: dict[str, Value] = {"step": [step_message(step) for step in self.steps]}
        if self.in_flight is not None:
            scheduling["max_inflight_requests"] = self.in_flight
        return pbtxt(
            {
                "name": self.spec.name,
                "platform": "ensemble",
                "max_batch_size": self.most_batch,
                "version_policy": LATEST_ONLY,
                "input": [tensor_message(tensor) for tensor in self.spec.inputs],
                "output": [tensor_message(tensor) for tensor in self.spec.outputs],
                "ensemble_scheduling": scheduling,
                "parameters": parameters(bundle=self.bundle),
            }
        )


def configs(
    specs: Mapping[str, NetworkSpec], *, bundle: str, digests: Mapping[str, str], threads: int
) -> dict[str, str]:
    """`config.pbtxt` of every model, by model name. Args: digests: network name to sha256 of its ONNX file."""
    networks = [NetworkModel(specs[name], bundle, digests[name], threads) for name in NETWORKS]
    ensemble = EnsembleModel(specs[ENSEMBLE], tuple(specs[name] for name in NETWORKS), bundle)
    return {model.spec.name: model.text() for model in (*networks, ensemble)}


def plan_configs(
    specs: Mapping[str, NetworkSpec], *, bundle: str, digests: Mapping[str, str], serving: Serving
) -> dict[str, str]:
    """As `configs`, for TensorRT plans."""
    networks = [PlanModel(specs[name], bundle, digests[name], serving) for name in NETWORKS]
    steps = tuple(specs[name] for name in NETWORKS)
    ensemble = EnsembleModel(specs[ENSEMBLE], steps, bundle, serving.most_batch, serving.in_flight)
    return {model.spec.name: model.text() for model in (*networks, ensemble)}


def warmup(spec: NetworkSpec, batch: int) -> Mapping[str, Value]:
    """One run on zeros before the model counts as ready: the first caller pays for no allocation."""
    inputs = [
        {
            "key": tensor.name,
            "value": {"data_type": Symbol(TYPES[tensor.dtype]), "dims": tensor.shape, "zero_data": True},
        }
        for tensor in spec.inputs
    ]
    return {"name": "zeros" if batch == 1 else f"zeros_{batch}", "batch_size": batch, "inputs": inputs}


def check_tensors(spec: NetworkSpec) -> None:
    """Raises: ValueError for a dtype Triton has no name for, a dynamic axis, or a name used twice on one side."""
    for side in (spec.inputs, spec.outputs):
        if not side or len({tensor.name for tensor in side}) != len(side):
            raise ValueError(f"{spec.name}: inputs and outputs must exist and have distinct names")
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.dtype not in TYPES or not tensor.shape or min(tensor.shape) < 1:
            raise ValueError(f"{spec.name}: {tensor} cannot be written as a Triton tensor of static shape")


def tensor_message(tensor: TensorSpec) -> Mapping[str, Value]:
    return {"name": tensor.name, "data_type": Symbol(TYPES[tensor.dtype]), "dims": tensor.shape}


def step_message(step: NetworkSpec) -> Mapping[str, Value]:
    """The version served, and maps from the network's tensor names to the ensemble's: the same names."""
    return {
        "model_name": step.name,
        "model_version": -1,
        "input_map": [{"key": tensor.name, "value": tensor.name} for tensor in step.inputs],
        "output_map": [{"key": tensor.name, "value": tensor.name} for tensor in step.outputs],
    }


def parameters(**values: str) -> list[Mapping[str, Value]]:
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]
