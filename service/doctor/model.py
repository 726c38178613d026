"""Bundle, engine and TensorRT plans."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from typing import Any

import numpy as np
from anyio import to_thread

from contract.bundle import Bundle, BundleInvalid, load_bundle, onnx_file, sha256
from contract.tensors import NETWORKS
from service.app import open_engine
from service.doctor.check import Check, State
from service.errors import ModelContractBroken, ModelUnavailable
from service.settings import Settings

FIX_BUNDLE = "Copy the bundle again from where it was exported, or export it anew; an altered file is never served."
FIX_UNTRAINED = "Serve a trained bundle; its masks mean nothing otherwise (TAGS_ALLOW_UNTRAINED is for tests)."
FIX_EMBEDDED = "Serve a bundle that `python -m export` has written for this version of the service."
FIX_TRITON = (
    "Start Triton, or correct TAGS_TRITON_URL (host and gRPC port). One that calls itself ready and does not answer "
    "has lost a model's process: restart it."
)
FIX_CONTRACT = "Let Triton's model repository and TAGS_BUNDLE_DIR be the same bundle, then restart Triton."
FIX_PLAN = "Build the plans on the GPU that runs them: `python -m export tensorrt`, then load the new repository."


def check_bundle(settings: Settings) -> tuple[Bundle | None, list[Check]]:
    """Blocking: it reads every file for its sha256."""
    try:
        bundle = load_bundle(settings.bundle_dir)
    except BundleInvalid as error:
        return None, [Check("bundle", "red", str(error), FIX_BUNDLE)]
    if not bundle.trained:
        state: State = "amber" if settings.allow_untrained else "red"
        return bundle, [Check("bundle", state, f"{bundle.identity} is untrained", FIX_UNTRAINED)]
    return bundle, [Check("bundle", "green", f"{bundle.identity}, {len(bundle.files)} files have their sha256")]


async def check_engine(settings: Settings) -> list[Check]:
    """The contract, a canary, and one image through the encoder."""
    started = time.monotonic()
    try:
        engine = await to_thread.run_sync(open_engine, settings)
        try:
            await engine.check()
            empty = np.zeros((engine.bundle.sizes.roi,) * 3, np.float32)
            await engine.encode(empty, empty)
        finally:
            await engine.close()
    except ModelUnavailable as error:
        triton = FIX_CONTRACT if isinstance(error, ModelContractBroken) else FIX_TRITON
        fix = triton if settings.engine == "triton" else FIX_EMBEDDED
        return [Check("engine", "red", error.detail, fix)]
    seconds = time.monotonic() - started
    return [Check("engine", "green", f"{settings.engine} answers; opened, canary and encoder in {seconds:.1f} s")]


def check_plans(bundle: Bundle) -> list[Check]:
    """Plans beside the networks: whole, of these weights, and for the GPU that is here. Blocking."""
    facts = {network: bundle.directory / network / "1" / "model.plan.json" for network in NETWORKS}
    facts = {network: path for network, path in facts.items() if path.exists()}
    if not facts:
        return [Check("TensorRT plans", "skipped", "the bundle has none here; the networks run as ONNX")]
    capability = _compute_capability()
    checks = []
    for network, path in facts.items():
        name = f"plan: {network}"
        try:
            document: dict[str, Any] = json.loads(path.read_text())
            whole = sha256(path.with_name("model.plan")) == document["plan_sha256"]
            of_bundle = document["onnx_sha256"] == bundle.files[onnx_file(network)]
            built_for = str(document["compute_capability"])
        except (OSError, ValueError, KeyError):
            checks.append(Check(name, "red", "its facts or the plan itself cannot be read", FIX_PLAN))
            continue
        if not whole or not of_bundle:
            found = "the plan is damaged" if not whole else "it holds the weights of another bundle"
            checks.append(Check(name, "red", found, FIX_PLAN))
        elif not capability:
            checks.append(Check(name, "skipped", f"for compute capability {built_for}; no GPU can be seen from here"))
        elif built_for != capability:
            found = f"for compute capability {built_for}, the GPU here has {capability}"
            checks.append(Check(name, "red", found, FIX_PLAN))
        else:
            checks.append(Check(name, "green", f"for compute capability {built_for}, as the GPU here"))
    return checks


def _compute_capability() -> str:
    """Of the first GPU that nvidia-smi names; "" without one."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()
