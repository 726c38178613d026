"""`python -m training fine-tune`: TAGS on a site's own or the public data, from SAM's and CLIP's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

from contract.sizes import CONFIGURATIONS
from training.layouts import CaseFiles, CaseUnusable, LayoutUnknown, find_cases

if TYPE_CHECKING:
    from training.finetuning.preparation import PreparedCase


def fine_tune(
    data: Annotated[
        Path, typer.Option(exists=True, help="folder in MSD, KiTS, LiTS or CASE/image.nii.gz layout, or CSV")
    ],
    split: Annotated[
        Path, typer.Option(exists=True, help='JSON: {"train": [names], "val": [names]}, or a list of such')
    ],
    out: Annotated[Path, typer.Option(help="folder for best.pt, last.pt, log.jsonl and prepared cases")],
    fold: Annotated[int, typer.Option(help="of a split with several")] = 0,
    config: Annotated[str, typer.Option(help=f"sizes: {' or '.join(CONFIGURATIONS)}")] = "vit_b",
    sam: Annotated[Path | None, typer.Option(exists=True, help="SAM's weights, sam_vit_b_01ec64.pth")] = None,
    clip: Annotated[
        Path | None, typer.Option(exists=True, help="CLIP's weights: OpenAI, open_clip or Hugging Face")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(exists=True, help="a checkpoint of ours instead of public weights")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 200,
    batch: Annotated[int, typer.Option(min=1, help="crops per device")] = 1,
    rate: Annotated[float, typer.Option(help="first learning rate")] = 1e-4,
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes on the CPU")] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, or bf16-mixed on a GPU that has it")] = "32-true",
    workers: Annotated[int, typer.Option(min=0, help="processes per device that draw samples ahead")] = 0,
    seed: int = 0,
    resume: Annotated[bool, typer.Option(help="go on from OUT/last.pt when it is there")] = False,
) -> None:
    """Train what TAGS trains, frozen where TAGS is frozen. The result is OUT/best.pt, for `python -m export`."""
    from lightning_fabric import Fabric  # with torch, heavy: other commands do without

    from export.checkpoint import CheckpointInvalid
    from export.pretrained import PretrainedInvalid
    from training.finetuning import loop
    from training.finetuning.recipes import recipe_of
    from training.finetuning.splits import SplitInvalid, read_split

    if config not in CONFIGURATIONS:
        raise typer.BadParameter(f"--config must be one of {', '.join(CONFIGURATIONS)}")
    if bool(init) == bool(sam and clip):
        raise typer.BadParameter("give either --sam and --clip, or --init")
    plan = loop.Plan(config=config, epochs=epochs, batch=batch, rate=rate, seed=seed, workers=workers)
    strategy = "ddp_find_unused_parameters_true" if devices > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    try:
        chosen = read_split(split, fold, find_cases(data))
        with fabric.rank_zero_first():
            train, val = (prepared(cases, out / "prepared") for cases in (chosen.train, chosen.val))
        data_of_run = loop.Data(train, val, recipe_of(train, CONFIGURATIONS[config], init))
        result = loop.fine_tune(plan, loop.Origin(sam, clip, init), data_of_run, out, fabric, resume=resume)
    except (LayoutUnknown, SplitInvalid, CaseUnusable, PretrainedInvalid, CheckpointInvalid) as error:
        raise typer.BadParameter(str(error)) from error
    if fabric.is_global_zero:
        typer.echo(result)


def prepared(cases: Sequence[CaseFiles], root: Path) -> tuple[PreparedCase, ...]:
    """The cases under `root`, those that are new prepared now. Raises: CaseUnusable with the case's name; OSError."""
    from training.finetuning.preparation import prepare

    done = []
    for files in track(cases, "preparing", transient=True):
        try:
            done.append(prepare(files, root))
        except CaseUnusable as error:
            raise CaseUnusable(f"{files.name}: {error}") from error
    return tuple(done)
