"""``bigmap evaluate``: how good a model or a map is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bigmap import api
from bigmap.chips import SPLITS, Split
from bigmap.cli.options import (
    ClusterOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SourceOption,
    read_recipe,
)
from bigmap.errors import RecipeError, SamplesError
from bigmap.evaluation import Evaluation, ReferenceSample
from bigmap.evaluation.reports import (
    format_score,
    list_notes,
    list_sample_tables,
    write_reports,
)

EPILOG = "Example: bigmap evaluate recipes/catalonia.yaml --baseline ndvi --out scores"

WeightsOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Weights in place of the recipe's own.")
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="train, validation or test: chips of it, by default test; of a map only what lies "
        "inside, by default all."
    ),
]
BaselineOption = Annotated[
    list[str],
    typer.Option(
        "--baseline",
        metavar="NAME[:OPTION=VALUE,...]",
        help="A model, or a weights file, to stand beside; as often as you like.",
    ),
]
DatesOption = Annotated[
    int | None, typer.Option(min=1, help="At most so many dates of a chip, the clearest.")
]
InstancesOption = Annotated[
    bool, typer.Option("--instances", help="Score connected areas too, such as buildings.")
]
RegisterOption = Annotated[
    bool, typer.Option("--register", help="Score images after the best small shift too.")
]
MapOption = Annotated[
    str | None,
    typer.Option("--map", metavar="MAP", help="Score this map, against the recipe's labels."),
]
AreaOption = Annotated[
    Path | None, typer.Option("--area", metavar="FILE", help="Of a map only what lies inside.")
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(metavar="POINTS", help="Score the map by this reference sample instead."),
]
LayerOption = Annotated[
    str | None, typer.Option(help="Of the file of points, where it has several layers.")
]
AttributeOption = Annotated[str, typer.Option(help="Of the points: names their class.")]
StratumOption = Annotated[
    str | None,
    typer.Option(help="Of the points: names their stratum; by default the class of the map."),
]
StratumAreasOption = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="stratum,area_ha of strata that are not the map's classes."),
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where scores and pictures go.")
]

Advance = Callable[[int, int], None]


def evaluate_command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    source: SourceOption = None,
    cluster: ClusterOption = None,
    weights: WeightsOption = None,
    split: SplitOption = None,
    baselines: BaselineOption = [],  # noqa: B006 - typer reads the default
    dates: DatesOption = None,
    instances: InstancesOption = False,
    register: RegisterOption = False,
    map_path: MapOption = None,
    area: AreaOption = None,
    reference: ReferenceOption = None,
    layer: LayerOption = None,
    attribute: AttributeOption = "class",
    stratum: StratumOption = None,
    stratum_areas: StratumAreasOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on a split of its samples, beside baselines; or a finished map.

    A map is scored against the recipe's labels, pixel by pixel, or by a reference sample of points,
    from which accuracy and areas are estimated with their confidence intervals.
    """
    of_chips = {"--weights": weights, "--baseline": baselines, "--dates": dates,
                "--register": register}  # fmt: skip
    of_maps = {"--area": area, "--reference": reference, "--cluster": cluster}
    of_points = {"--layer": layer, "--stratum": stratum, "--stratum-areas": stratum_areas}
    _refuse_options(
        {
            "scores chips, not a map": of_chips if map_path else {},
            "needs --map": {} if map_path else of_maps,
            "needs --reference": {} if reference else of_points,
            "is not for a reference sample": {"--instances": instances} if reference else {},
            "needs --stratum": {"--stratum-areas": stratum_areas} if stratum is None else {},
        }
    )
    loaded = read_recipe(recipe, settings, None, source, cluster=cluster)
    chosen = parse_split(split) if split else None
    area_file = str(area) if area else None
    with show_progress("blocks" if map_path else "chips") as advance:
        if map_path is None:
            evaluation = api.evaluate_model(
                loaded, split=chosen or "test", weights=weights, baselines=baselines,
                max_dates=dates, instances=instances, register=register, advance=advance,
            )  # fmt: skip
        elif reference is None:
            evaluation = api.evaluate_map(
                loaded, map_path.rstrip("/"), area_file=area_file, split=chosen,
                instances=instances, advance=advance,
            )  # fmt: skip
        else:
            areas = str(stratum_areas) if stratum_areas else None
            sample = ReferenceSample(str(reference), attribute, stratum, areas, layer)
            evaluation = api.estimate_areas(
                loaded, map_path.rstrip("/"), sample, area_file=area_file, split=chosen,
                advance=advance,
            )  # fmt: skip
    finish(evaluation, out, as_json=as_json)


def _refuse_options(rules: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse options that were given and that a rule forbids, instead of ignoring them."""
    for reason, options in rules.items():
        for name, value in options.items():
            if value:
                raise RecipeError(f"{name}: {reason}; leave it out, or see bigmap evaluate --help")


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
