"""What stands beside a plan, and whether a server may load it.

A plan is machine code for one kind of GPU and one TensorRT. `model.plan.json` beside it says which, for which weights
and batches; a plan without it, or that does not match the server, is refused before Triton sees it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.tensorrt_build import BuildOptions, BuiltPlan, PlanRefused

PLAN_FILE = "model.plan"
FACTS_FILE = "model.plan.json"


@dataclass(frozen=True)
class Server:
    """Where plans are to run."""

    tensorrt: str  # version, such as "10.13.3"
    compute_capability: str  # such as "9.0"


@dataclass(frozen=True)
class PlanFacts:
    """`model.plan.json`."""

    network: str
    bundle: str  # name and version
    onnx_sha256: str
    plan_sha256: str
    tensorrt: str
    cuda: str
    gpu: str  # its name, for people
    compute_capability: str
    precision: str
    batches: tuple[int, int, int]  # of the optimisation profile: least, usual, most
    workspace_bytes: int
    version_compatible: bool
    build_s: float

    def write(self, folder: Path) -> None:
        (folder / FACTS_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_facts(folder: Path) -> PlanFacts:
    """Raises: PlanRefused: absent, damaged, or of another plan."""
    try:
        document = json.loads((folder / FACTS_FILE).read_text())
        facts = PlanFacts(**document | {"batches": tuple(document["batches"])})
        digest = hashlib.sha256((folder / PLAN_FILE).read_bytes()).hexdigest()
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise PlanRefused(f"{folder.name} has no plan with a readable {FACTS_FILE}") from error
    if digest != facts.plan_sha256:
        raise PlanRefused(f"{facts.network}: the plan is not the one that {FACTS_FILE} describes")
    return facts


def check_plan(facts: PlanFacts, server: Server, *, bundle: str, onnx_sha256: str, most_batch: int) -> None:
    """Raises: PlanRefused in one line: another GPU, another TensorRT, other weights, or no profile for the batch."""
    name = facts.network
    if facts.compute_capability != server.compute_capability:
        raise PlanRefused(
            f"{name}: the plan is for compute capability {facts.compute_capability} ({facts.gpu}), "
            f"the server's GPU has {server.compute_capability}; build it there"
        )
    if not runs_on(facts, server):
        raise PlanRefused(f"{name}: the plan is of TensorRT {facts.tensorrt}, the server has {server.tensorrt}")
    if (facts.bundle, facts.onnx_sha256) != (bundle, onnx_sha256):
        raise PlanRefused(f"{name}: the plan holds the weights of {facts.bundle}, which are not those of {bundle}")
    least, _, most = facts.batches
    if least > 1 or most < most_batch:
        raise PlanRefused(f"{name}: no profile for batch 1 to {most_batch}, only for {least} to {most}")


def runs_on(facts: PlanFacts, server: Server) -> bool:
    """Exactly the same TensorRT; with the version-compatible option the same major version, not older."""
    built, there = version(facts.tensorrt), version(server.tensorrt)
    if not facts.version_compatible:
        return built == there
    return built[0] == there[0] and built <= there


def version(text: str) -> tuple[int, ...]:
    """Major, minor and patch: the build number behind them does not matter."""
    return tuple(int(part) for part in text.split(".")[:3])


def facts_of(
    library: ModuleType, built: BuiltPlan, options: BuildOptions, *, network: str, bundle: str, onnx_sha256: str
) -> PlanFacts:
    """Of a plan that was built just now on this machine's GPU."""
    gpu = this_gpu()
    return PlanFacts(
        network=network,
        bundle=bundle,
        onnx_sha256=onnx_sha256,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        tensorrt=library.__version__,
        precision=options.precision.value,
        batches=(1, options.usual_batch, options.most_batch),
        workspace_bytes=options.workspace_bytes,
        version_compatible=options.version_compatible,
        build_s=round(built.seconds, 1),
        **gpu,
    )


def this_gpu() -> dict[str, Any]:
    """cuda, gpu, compute_capability. Raises: PlanRefused: there is none."""
    import torch

    if not torch.cuda.is_available():
        raise PlanRefused("no GPU here: a plan is built on the kind of GPU that will run it")
    major, minor = torch.cuda.get_device_capability()
    return {
        "cuda": str(torch.version.cuda),
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": f"{major}.{minor}",
    }
