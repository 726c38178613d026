"""`python -m export tensorrt`: a bundle's ONNX files to plans for this GPU, checked, and to a Triton repository."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Annotated

import onnx
import typer
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.table import Table

from contract.bundle import Bundle, BundleInvalid, load_bundle, onnx_file
from contract.tensors import NETWORKS, network_specs
from export.interface import InterfaceBroken, check_interface
from export.precision import Precision
from export.refusal import refusal
from export.tensorrt_build import GIB, BuildOptions, BuiltPlan, PlanRefused, build_plan
from export.tensorrt_parity import PlanRunner, compare_plan, delete_plan
from export.tensorrt_plan import PLAN_FILE, Server, facts_of, this_gpu
from export.tensorrt_repository import write_plan_repository
from export.triton_config import MAX_BATCH, Serving

PROOF_TARGET = "SM89"  # compute capability that the compile proof aims at: an Ada GPU, as hospitals have

console = Console()


def main(
    bundle: Annotated[Path, typer.Option(help="Directory of the bundle.")],
    out: Annotated[Path | None, typer.Option(help="Where the plans go, a folder for each network.")] = None,
    repository: Annotated[Path | None, typer.Option(help="Also write a Triton repository of them here.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the heavy products.")] = Precision.FP16,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Largest batch of the profile.")] = MAX_BATCH,
    workspace_gib: Annotated[float, typer.Option(help="Scratch memory of an engine, fixed.")] = 16.0,
    timing_cache: Annotated[Path | None, typer.Option(help="Read and written: the next build is faster.")] = None,
    version_compatible: Annotated[bool, typer.Option(help="Also for later minor versions of TensorRT.")] = False,
    instances: Annotated[int, typer.Option(min=1, help="Of each network on a GPU.")] = 1,
    server_tensorrt: Annotated[str | None, typer.Option(help="The server's TensorRT, when it is not this one.")] = None,
    build: Annotated[
        bool, typer.Option(help="--no-build: the plans are in --out already; refuse those of another GPU or TensorRT.")
    ] = True,
    compile_proof: Annotated[
        bool, typer.Option(help="No GPU: only show that TensorRT for RTX compiles the graphs. Writes nothing.")
    ] = False,
) -> None:
    """Build, compare with ONNX Runtime, and only then keep."""
    try:
        options = BuildOptions(
            precision=precision,
            most_batch=batch,
            workspace_bytes=int(workspace_gib * GIB),
            version_compatible=version_compatible,
        )
        source = opened(bundle)
        if compile_proof:
            prove(source, library("tensorrt_rtx", "tensorrt-rtx-cu13"), options)
            return
        if out is None:
            raise PlanRefused("--out is needed, or --compile-proof")
        tensorrt = library("tensorrt", "tensorrt")
        this_gpu()
        if build:
            build_all(source, out, tensorrt, options, timing_cache)
        if repository is not None:
            server = Server(server_tensorrt or tensorrt.__version__, this_gpu()["compute_capability"])
            serving = Serving(most_batch=batch, instances=instances)
            write_plan_repository(source, out, repository, server=server, serving=serving)
            console.print(f"{repository}: a Triton repository of {source.identity}")
    except (PlanRefused, ValueError) as error:
        raise refusal(error) from error


def opened(directory: Path) -> Bundle:
    """Raises: PlanRefused."""
    try:
        return load_bundle(directory)
    except BundleInvalid as error:
        raise PlanRefused(str(error)) from error


def library(name: str, package: str) -> ModuleType:
    """Raises: PlanRefused: it is not installed, or cannot load its own libraries."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise PlanRefused(f"{name} is not installed here; `pip install {package}` where its GPU is") from error


def read_graph(bundle: Bundle, network: str) -> onnx.ModelProto:
    """Raises: PlanRefused: damaged, or not the contract's network."""
    try:
        model = onnx.load(bundle.onnx_path(network))
        onnx.checker.check_model(model)
        check_interface(model, network_specs(bundle.sizes)[network])
    except (DecodeError, onnx.checker.ValidationError, InterfaceBroken, ValueError) as error:
        raise PlanRefused(f"{network}: {onnx_file(network)} is damaged or another network") from error
    return model


def prove(bundle: Bundle, rtx: ModuleType, options: BuildOptions) -> None:
    table = Table("network", "compiled", "s", title=f"Compile proof of {bundle.identity}, {options.precision.value}")
    for network in NETWORKS:
        spec = network_specs(bundle.sizes)[network]
        built = build_plan(rtx, read_graph(bundle, network), spec, options, ahead_of_time=PROOF_TARGET)
        table.add_row(network, f"{len(built.plan) / 2**20:.1f} MiB for {PROOF_TARGET}", f"{built.seconds:.1f}")
    console.print(table)
    console.print("Not plans for Triton, and nothing was run: the compiler accepts every operator and the profile.")


def build_all(
    bundle: Bundle, out: Path, tensorrt: ModuleType, options: BuildOptions, timing_cache: Path | None
) -> None:
    """Raises: PlanRefused; the plan that failed is then gone."""
    for network in NETWORKS:
        spec, known = network_specs(bundle.sizes)[network], b""
        if timing_cache is not None and timing_cache.exists():
            known = timing_cache.read_bytes()
        built = build_plan(tensorrt, read_graph(bundle, network), spec, options, timing_cache=known)
        if timing_cache is not None:
            timing_cache.parent.mkdir(parents=True, exist_ok=True)
            timing_cache.write_bytes(built.timing_cache)
        keep(bundle, network, out / network, tensorrt, options, built)


def keep(
    bundle: Bundle, network: str, folder: Path, tensorrt: ModuleType, options: BuildOptions, built: BuiltPlan
) -> None:
    """Write the plan and its facts, and hold it to ONNX Runtime. Raises: PlanRefused, the plan deleted."""
    spec = network_specs(bundle.sizes)[network]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN_FILE).write_bytes(built.plan)
    digest = bundle.files[onnx_file(network)]
    try:
        facts = facts_of(tensorrt, built, options, network=network, bundle=bundle.identity, onnx_sha256=digest)
        facts.write(folder)
        runner, batches = PlanRunner(tensorrt, built.plan, spec), tuple(sorted({1, options.most_batch}))
        found = compare_plan(runner, spec, bundle.onnx_path(network), precision=options.precision, batches=batches)
    except BaseException:
        delete_plan(folder)
        raise
    worst = max(found, key=lambda difference: difference.relative / difference.allowed)
    console.print(f"{network}: kept; furthest {worst.tensor} at {worst.relative:.1e} (allowed {worst.allowed:.0e})")
