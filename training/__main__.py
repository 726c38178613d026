"""`python -m training`: train on generated phantoms, fine-tune on real scans, measure a bundle on known tumours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contract.sizes import CONFIGURATIONS
from training.evaluation.command import evaluate
from training.finetuning.command import fine_tune
from training.recipe import Only

app = typer.Typer(help=__doc__, no_args_is_help=True)
app.command()(evaluate)
app.command("fine-tune")(fine_tune)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="folder for last.pt and log.jsonl")],
    config: str = "small",
    steps: Annotated[int | None, typer.Option(help="budget in steps")] = None,
    minutes: Annotated[float | None, typer.Option(help="budget in wall-clock minutes instead")] = None,
    batch: int = 4,
    rate: Annotated[float, typer.Option(help="peak learning rate")] = 1e-3,
    seed: int = 0,
    workers: Annotated[int, typer.Option(help="processes that share each batch, one core each")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda; on cuda one worker, and phantoms are made there")] = "cpu",
    init: Annotated[Path | None, typer.Option(help="checkpoint to start from")] = None,
    close_up: Annotated[
        int | None, typer.Option(help="a cheap first stage: voxels per side of parts of phantoms")
    ] = None,
    only: Annotated[
        Only | None, typer.Option(help="learn nothing else; answers to requests without one stay as they are")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on from OUT/last.pt when it is there")] = False,
) -> None:
    """Train one stage; its checkpoint is OUT/last.pt."""
    from training.loop import Plan, train  # torch; `evaluate` of real cases runs in the gateway's environment as well

    if (steps is None) == (minutes is None):
        raise typer.BadParameter("give either --steps or --minutes")
    if batch % workers:
        raise typer.BadParameter("the batch must be a multiple of the workers")
    roi = CONFIGURATIONS[config].roi
    plan = Plan(
        config=config, roi=close_up or roi, whole=roi if close_up else None, batch=batch, rate=rate, seed=seed,
        steps=steps, minutes=minutes, workers=workers, device=device, only=only,
    )  # fmt: skip
    typer.echo(train(plan, out, init=init, resume=resume))


@app.command()
def average(
    first: Annotated[Path, typer.Argument(exists=True, help="checkpoint")],
    second: Annotated[Path, typer.Argument(exists=True, help="one that was trained on from it")],
    out: Annotated[Path, typer.Option(help="checkpoint to write; `run --init` trains on from it")],
    share: Annotated[float, typer.Option(min=0, max=1, help="of the second")] = 0.5,
) -> None:
    """Weights between two checkpoints of one lineage (Wortsman et al. 2022, robust fine-tuning)."""
    import torch

    from export.checkpoint import save_checkpoint

    one, other = (torch.load(path, weights_only=True) for path in (first, second))
    weights = {name: torch.lerp(one["state_dict"][name], value, share) for name, value in other["state_dict"].items()}
    training = other["meta"]["training"] | {"averaged_with": one["meta"]["training"], "share": share}
    save_checkpoint(
        {"config": other["config"], "state_dict": weights, "meta": other["meta"] | {"training": training}}, out
    )


@app.command()
def pictures(out: Annotated[Path, typer.Option(help="JPEG to write")]) -> None:
    """A page of phantoms to look at."""
    from training.pictures import save_page

    save_page(out)


@app.command()
def failures(
    evaluation: Annotated[Path, typer.Option(exists=True, help="JSON of `evaluate --phantoms`")],
    out: Annotated[Path, typer.Option(help="JPEG to write")],
    bundle: Annotated[Path, typer.Option(help="the bundle that was evaluated")] = Path("model_repository"),
) -> None:
    """The phantoms on which a bundle fails worst, with truth and answers outlined."""
    import json

    from training.evaluation.failures import save_failures

    save_failures(out, bundle, json.loads(evaluation.read_text()))


if __name__ == "__main__":
    app()
