"""``bigmap evaluate``: how good a model or a map is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bigmap import api
from bigmap.chips import SPLITS, Split
from bigmap.cli.options import (
    JsonOption,
    RecipeArgument,
    SetOption,
    SourceOption,
    read_recipe,
)
from bigmap.errors import SamplesError
from bigmap.evaluation import Evaluation
from bigmap.evaluation.reports import format_score, list_notes, write_reports

EPILOG = "Example: bigmap evaluate recipes/catalonia.yaml --baseline ndvi --out scores"


def evaluate_command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    source: SourceOption = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Weights in place of the recipe's own."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Chips of train, validation or test; by default test.")
    ] = None,
    baselines: Annotated[
        list[str],
        typer.Option(
            "--baseline",
            metavar="NAME[:OPTION=VALUE,...]",
            help="A model, or a weights file, to stand beside; as often as you like.",
        ),
    ] = [],  # noqa: B006 - typer reads the default
    dates: Annotated[
        int | None, typer.Option(min=1, help="At most so many dates of a chip, the clearest.")
    ] = None,
    instances: Annotated[
        bool, typer.Option("--instances", help="Score connected areas too, such as buildings.")
    ] = False,
    register: Annotated[
        bool, typer.Option("--register", help="Score images after the best small shift too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where scores and pictures go.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on a split of its samples, beside baselines."""
    loaded = read_recipe(recipe, settings, None, source)
    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("chips", total=None)
        evaluation = api.evaluate_model(
            loaded,
            split=parse_split(split or "test"),
            weights=weights,
            baselines=baselines,
            max_dates=dates,
            instances=instances,
            register=register,
            advance=lambda done, total: progress.update(task, completed=done, total=total),
        )
    finish(evaluation, out, as_json=as_json)


def parse_split(text: str) -> Split:
    """Read the name of a split."""
    for split in SPLITS:
        if text == split:
            return split
    raise SamplesError(f"--split {text}: is unknown; there are {', '.join(SPLITS)}")


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print the table for people."""
    for note in list_notes(evaluation):
        console.print(f"note: {note}", markup=False)
    table = Table(title=evaluation.title, title_justify="left", box=None)
    table.add_column("")
    for model in evaluation.models:
        table.add_column(model.label, justify="right")
    for name, values in evaluation.rows().items():
        table.add_row(name, *map(format_score, values))
    console.print(table)


def finish(evaluation: Evaluation, out: Path | None, *, as_json: bool) -> None:
    """Write what is to be written and print what is to be printed."""
    files = write_reports(evaluation, out) if out is not None else []
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    show_evaluation(console, evaluation)
    for file in files:
        console.print(f"written: {file}", markup=False)
    if as_json:
        typer.echo(json.dumps(evaluation.to_dict()))
