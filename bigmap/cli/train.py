"""``bigmap train``: from chips to weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from bigmap import api
from bigmap.cli.options import JsonOption, OverwriteOption, RecipeArgument, ResumeOption, SetOption
from bigmap.config import load_recipe
from bigmap.errors import TrainingError
from bigmap.learning.training import TrainingProgress, TrainingSummary, find_rank
from bigmap.mapping.progress import format_duration

SIMULATED = (
    "note: the chips are of simulated scenes; weights trained on them know no real place, and "
    "their card says so"
)


def train_command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on this machine; by default one for each GPU."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="FILE", help="One process on each worker of this cluster instead."
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the recipe's model on its samples. Exit code 75: stopped, go on with --resume.

    The best weights go to training.weights; checkpoints, logs and pictures to the folder beside
    them that ends in .run.
    """
    if processes is not None and cluster is not None:
        raise TrainingError("--processes and --cluster contradict each other; give one")
    loaded = load_recipe(recipe, settings, cluster=cluster)
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    summary = api.train(
        loaded,
        processes=processes,
        on_cluster=cluster is not None,
        resume=resume,
        overwrite=overwrite,
        reporter=TrainingProgress(console),
    )
    rank = find_rank()
    if rank is None or rank.is_first:
        if as_json:
            typer.echo(json.dumps(asdict(summary) | {"exit_code": summary.exit_code}))
        show_training(console, summary)
    raise typer.Exit(summary.exit_code)


def show_training(console: Console, summary: TrainingSummary) -> None:
    """Print what a run came to for people."""
    console.print(
        f"trained: {summary.epochs} epochs, {summary.steps} steps in "
        f"{format_duration(summary.elapsed_s)}, {summary.chips_per_s:.1f} chips/s, "
        f"{100 * summary.wait_share:.1f} % waiting for data"
    )
    if summary.stopped:
        console.print("stopped early: go on with the same command and --resume")
    if summary.stopped_early:
        console.print("ended early: the validation score had not risen for early_stop_epochs")
    if summary.scores:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in summary.scores.items())
        console.print(
            f"best by {summary.chosen_by}: epoch {summary.best_epoch}, {scores}", markup=False
        )
    if summary.is_simulated:
        console.print(SIMULATED, markup=False)
    if summary.best_epoch:
        console.print(f"weights: {summary.weights}", markup=False)
    console.print(f"run folder: {summary.folder}", markup=False)
