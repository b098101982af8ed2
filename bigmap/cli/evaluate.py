"""``bigmap evaluate``: how good a model or a map is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer.core import TyperGroup

from bigmap import api
from bigmap.cli.options import (
    ClusterOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SourceOption,
    read_recipe,
)
from bigmap.errors import RecipeError, SamplesError
from bigmap.learning.chips import SPLITS, Split
from bigmap.learning.evaluation import Evaluation, ReferenceSample
from bigmap.learning.evaluation.reports import (
    format_score,
    list_notes,
    list_sample_tables,
    write_reports,
)

InsideOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="train, validation or test: of the map only what lies inside; by default all.",
    ),
]
InstancesOption = Annotated[
    bool, typer.Option("--instances", help="Score connected areas too, such as buildings.")
]
MapOption = Annotated[
    str, typer.Option("--map", metavar="MAP", help="The map to score.", show_default=False)
]
AreaOption = Annotated[
    str | None, typer.Option("--area", metavar="FILE", help="Of the map only what lies inside.")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where scores and pictures go.")
]

Advance = Callable[[int, int], None]


class EvaluateGroup(TyperGroup):
    """Its commands; where none is named, the one that the options are of."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of a command before arguments that begin otherwise."""
        if not args or args[0] not in {"--help", *self.commands}:
            given = {arg.partition("=")[0] for arg in args}
            name = next((name for name in ("reference", "map") if f"--{name}" in given), "model")
            args = [name, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=EvaluateGroup,
    help="Score a model on its samples, beside baselines; or a finished map.",
    epilog="Example: bigmap evaluate model recipes/catalonia.yaml --baseline ndvi --out scores",
)


@app.command(
    "model",
    epilog="Example: bigmap evaluate model recipes/catalonia.yaml --baseline ndvi --out scores",
)
def model_command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    source: SourceOption = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights in place of the recipe's own.")
    ] = None,
    split: Annotated[str, typer.Option(help=f"{', '.join(SPLITS)}: its chips.")] = "test",
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
    instances: InstancesOption = False,
    register: Annotated[
        bool, typer.Option("--register", help="Score images after the best small shift too.")
    ] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on a split of its samples, beside baselines; evaluate alone means this too."""
    loaded = read_recipe(recipe, settings, None, source)
    chosen = parse_split(split)
    with show_progress("chips") as advance:
        evaluation = api.evaluate_model(
            loaded,
            split=chosen,
            weights=weights,
            baselines=baselines,
            max_dates=dates,
            instances=instances,
            register=register,
            advance=advance,
        )
    finish(evaluation, out, as_json=as_json)


@app.command(
    "map",
    epilog="Example: bigmap evaluate map recipes/catalonia.yaml --map maps/catalonia.zarr",
)
def map_command(
    recipe: RecipeArgument,
    map_path: MapOption,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    source: SourceOption = None,
    cluster: ClusterOption = None,
    area: AreaOption = None,
    split: InsideOption = None,
    instances: InstancesOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a map against the recipe's labels, pixel by pixel."""
    loaded = read_recipe(recipe, settings, None, source, cluster=cluster)
    chosen = parse_split(split) if split is not None else None
    with show_progress("blocks") as advance:
        evaluation = api.evaluate_map(
            loaded,
            map_path.rstrip("/"),
            area_file=area,
            split=chosen,
            instances=instances,
            advance=advance,
        )
    finish(evaluation, out, as_json=as_json)


@app.command(
    "reference",
    epilog="Example: bigmap evaluate reference recipes/catalonia.yaml --map maps/catalonia.zarr "
    "--reference points.gpkg",
)
def reference_command(
    recipe: RecipeArgument,
    map_path: MapOption,
    reference: Annotated[
        str, typer.Option(metavar="POINTS", help="The reference sample.", show_default=False)
    ],
    layer: Annotated[
        str | None, typer.Option(help="Of the file of points, where it has several layers.")
    ] = None,
    attribute: Annotated[str, typer.Option(help="Of the points: names their class.")] = "class",
    stratum: Annotated[
        str | None,
        typer.Option(help="Of the points: names their stratum; by default the class of the map."),
    ] = None,
    stratum_areas: Annotated[
        str | None,
        typer.Option(
            metavar="CSV", help="stratum,area_ha of strata that are not the map's classes."
        ),
    ] = None,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    source: SourceOption = None,
    cluster: ClusterOption = None,
    area: AreaOption = None,
    split: InsideOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate a map's accuracy and areas from a reference sample of points.

    Each with its confidence interval.
    """
    if stratum_areas is not None and stratum is None:
        raise RecipeError("--stratum-areas: needs --stratum; leave it out, or name the attribute")
    loaded = read_recipe(recipe, settings, None, source, cluster=cluster)
    chosen = parse_split(split) if split is not None else None
    sample = ReferenceSample(reference, attribute, stratum, stratum_areas, layer)
    with show_progress("blocks") as advance:
        evaluation = api.estimate_areas(
            loaded, map_path.rstrip("/"), sample, area_file=area, split=chosen, advance=advance
        )
    finish(evaluation, out, as_json=as_json)


@contextmanager
def show_progress(what: str) -> Iterator[Advance]:
    """Show a bar on a terminal, and yield what moves it."""
    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


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
    for title, columns, rows in list_sample_tables(evaluation):
        table = Table(title=title, title_justify="left", box=None)
        for position, column in enumerate(columns):
            table.add_column(column, justify="right" if position else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in evaluation.method:
        console.print(line, markup=False)


def finish(evaluation: Evaluation, out: Path | None, *, as_json: bool) -> None:
    """Write what is to be written and print what is to be printed."""
    files = write_reports(evaluation, out) if out is not None else []
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    show_evaluation(console, evaluation)
    for file in files:
        console.print(f"written: {file}", markup=False)
    if as_json:
        typer.echo(json.dumps(evaluation.to_dict()))
