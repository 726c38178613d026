"""`python -m training`: train a configuration on generated phantoms, and measure it on held-out ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.evaluation.command import evaluate

app = typer.Typer(help=__doc__, no_args_is_help=True)
app.command()(evaluate)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="folder for last.pt and log.jsonl")],
    config: str = "small",
    roi: Annotated[int, typer.Option(help="voxels per side; 64 is a cheap first stage for `small`")] = 128,
    steps: Annotated[int | None, typer.Option(help="budget in steps")] = None,
    minutes: Annotated[float | None, typer.Option(help="budget in wall-clock minutes instead")] = None,
    batch: int = 2,
    rate: Annotated[float, typer.Option(help="peak learning rate")] = 1e-3,
    seed: int = 0,
    threads: int = 2,
    freeze: Annotated[bool, typer.Option(help="train the decoder alone")] = False,
    init: Annotated[Path | None, typer.Option(help="checkpoint to start from")] = None,
    resume: Annotated[bool, typer.Option(help="go on from OUT/last.pt when it is there")] = False,
) -> None:
    """Train one stage; its checkpoint is OUT/last.pt."""
    import torch  # only training needs it; `evaluate` runs in the gateway's environment as well

    from training.loop import Plan, train

    if (steps is None) == (minutes is None):
        raise typer.BadParameter("give either --steps or --minutes")
    torch.set_num_threads(threads)
    plan = Plan(config=config, roi=roi, batch=batch, rate=rate, seed=seed, steps=steps, minutes=minutes, freeze=freeze)
    typer.echo(train(plan, out, init=init, resume=resume))


if __name__ == "__main__":
    app()
