"""`python -m export --config small --checkpoint FILE --out model_repository/`: a checkpoint to a served bundle.

That is short for `python -m export bundle ...`; `tensorrt` makes plans of a bundle, `describe` says what it
costs, `checkpoint` gives back what it was exported from.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from contract.sizes import CONFIGURATIONS
from export import describe, recovery, tensorrt_command
from export.checkpoint import Checkpoint, CheckpointInvalid, load_checkpoint, read_meta_file, untrained
from export.interface import InterfaceBroken
from export.networks.build import build_tags
from export.parity import ParityBroken
from export.pretrained import PretrainedInvalid, load_clip_text, load_tags
from export.refusal import refusal
from export.repository import Export, write_repository
from export.triton_config import THREADS

console = Console()


def main(
    out: Annotated[Path, typer.Option(help="Model repository to write; files there are replaced.")],
    config: Annotated[str, typer.Option(help=f"Sizes: {' or '.join(CONFIGURATIONS)}.")] = "small",
    checkpoint: Annotated[Path | None, typer.Option(help="Training checkpoint.", exists=True, dir_okay=False)] = None,
    random_weights: Annotated[
        bool, typer.Option("--untrained", help="Instead of a checkpoint: random weights, for tests of servers.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    tags: Annotated[Path | None, typer.Option(help="Instead: a TAGS or 3DSAM-adapter checkpoint.", exists=True)] = None,
    clip_text: Annotated[Path | None, typer.Option(help="Beside --tags: CLIP's text weights.", exists=True)] = None,
    meta: Annotated[Path | None, typer.Option(help="Beside --tags: JSON of what the bundle says.", exists=True)] = None,
    name: Annotated[str, typer.Option(help="The bundle's name.")] = "small",
    bundle_version: Annotated[str, typer.Option(help="The bundle's version.")] = "0.1.0",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each Triton model.")] = THREADS,
) -> None:
    """Write the three ONNX files, their Triton models, the ensemble and bundle.json, checked against torch.

    What is refused is said in one line, and nothing is written then.
    """
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        if tags is not None:
            source = read_upstream(config, tags, clip_text, meta)
        else:
            source = read_source(config, checkpoint, seed if random_weights else None)
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("start", total=None)
            export = write_repository(
                source,
                out,
                name=name,
                version=bundle_version,
                threads=threads,
                report=lambda step: progress.update(task, description=step),
            )
    except (CheckpointInvalid, PretrainedInvalid, InterfaceBroken, ParityBroken) as error:
        raise refusal(error) from error
    print_summary(source, export)


def read_source(config: str, checkpoint: Path | None, seed: int | None) -> Checkpoint:
    if config not in CONFIGURATIONS:
        raise typer.BadParameter(f"--config must be one of {', '.join(CONFIGURATIONS)}")
    if (checkpoint is None) == (seed is None):
        raise typer.BadParameter("give one of --checkpoint FILE, --tags FILE and --untrained")
    sizes = CONFIGURATIONS[config]
    return untrained(sizes, seed) if checkpoint is None else load_checkpoint(checkpoint, sizes)


def read_upstream(config: str, tags: Path, clip_text: Path | None, meta: Path | None) -> Checkpoint:
    """What the files hold; on the console what became of their keys. Raises: PretrainedInvalid, CheckpointInvalid."""
    if config not in CONFIGURATIONS or clip_text is None or meta is None:
        raise typer.BadParameter("--tags needs --config, --clip-text FILE and --meta FILE")
    model = build_tags(CONFIGURATIONS[config])
    for load, path in ((load_tags, tags), (load_clip_text, clip_text)):
        console.print(f"{path.name}: {load(model, path)}")
    return Checkpoint(model.eval(), read_meta_file(meta), trained=True)


def print_summary(source: Checkpoint, export: Export) -> None:
    bundle = export.bundle
    table = Table("network", "parameters", "ONNX file", "largest difference to torch", "allowed there")
    for name, network in source.model.networks().items():
        worst = max(export.differences[name], key=lambda difference: difference.largest / difference.tolerance)
        table.add_row(
            name,
            f"{sum(parameter.numel() for parameter in network.parameters()):,}",
            f"{bundle.onnx_path(name).stat().st_size / 2**20:.1f} MiB",
            f"{worst.largest:.1e} ({worst.tensor})",
            f"{worst.tolerance:.0e}",
        )
    console.print(table)
    state = "trained" if bundle.trained else "[yellow]UNTRAINED: its masks mean nothing[/yellow]"
    console.print(f"{bundle.identity}, {state}, in {bundle.directory}\n{bundle.intended_use}")


def command_line() -> typer.Typer:
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)
    app.command("bundle")(main)
    app.command("tensorrt")(tensorrt_command.main)
    app.command("describe")(describe.main)
    app.command("checkpoint")(recovery.main)
    return app


def arguments(given: list[str]) -> list[str]:
    """Options alone are meant for `bundle`."""
    return ["bundle", *given] if given and given[0].startswith("--") and given[0] != "--help" else given


if __name__ == "__main__":
    command_line()(arguments(sys.argv[1:]))
