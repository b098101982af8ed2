"""``bigmap run``: a recipe becomes a map."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bigmap import api
from bigmap.cli.options import (
    BboxOption,
    ClusterOption,
    JsonOption,
    OverwriteOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
    SourceOption,
    read_recipe,
)
from bigmap.config import Recipe
from bigmap.learning.training.folder import TrainingFolder
from bigmap.mapping.estimates import emulates_bfloat16
from bigmap.mapping.places import Attempt, check_place
from bigmap.mapping.progress import (
    ProgressReporter,
    describe_replaced,
    describe_slowest,
    describe_without,
    format_duration,
    format_km2,
)
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.reporting import RunSummary
from bigmap.models import refuse_random
from bigmap.models.base import ModelSpec
from bigmap.models.choosing import advise_weights, choose_model, use_trained_weights
from bigmap.models.devices import SLOW_BFLOAT16
from bigmap.signals import stop_on_signals


def run_command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    bbox: BboxOption = None,
    source: SourceOption = None,
    cluster: ClusterOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Map so many blocks only.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    output: Annotated[str | None, typer.Option(help="Where the map goes, ends in .zarr.")] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    staged: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Read what bigmap stage fetched, and nothing else."),
    ] = None,
    redo: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCKS",
            help="Do only these blocks again: r12c34,r12c35, or failed, or degraded.",
        ),
    ] = None,
    reuse: Annotated[
        str | None,
        typer.Option(metavar="MAP", help="Copy blocks of an earlier map that would be the same."),
    ] = None,
    allow_random_weights: Annotated[
        bool,
        typer.Option("--allow-random-weights", help="Map by a network that has learnt nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a map.

    Exit code 0: done; 3: blocks failed, no pixel has a value, or a scene was replaced; 75: stopped,
    go on with --resume.
    """
    extra = [f"output.path={output}"] if output else []
    extra += [f"cluster.workers={workers}"] if workers else []
    given = read_recipe(recipe, [*settings, *extra], bbox, source, cluster=cluster)
    loaded = use_trained_weights(given)
    attempt = Attempt(resume or redo is not None, overwrite)
    check_place(loaded, Purpose.of_map(loaded), attempt)
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    spec = choose_model(loaded.model).build().spec
    if not allow_random_weights:
        refuse_random(spec, advise_weights(loaded))
    if loaded.model.weights != given.model.weights:
        console.print(f"note: {describe_weights(given)}", markup=False)
    show_notes(console, loaded, spec, file=recipe)
    with stop_on_signals():
        summary = api.run(
            loaded,
            resume=resume,
            overwrite=overwrite,
            limit=limit,
            staged=staged,
            redo=redo.split(",") if redo is not None else None,
            reuse=reuse.rstrip("/") if reuse is not None else None,
            allow_random_weights=allow_random_weights,
            reporter=ProgressReporter(console),
        )
    if as_json:
        typer.echo(json.dumps(summary_dict(summary, loaded.output.path)))
    show_summary(console, summary, loaded.output.path)
    raise typer.Exit(summary.exit_code)


def show_notes(console: Console, recipe: Recipe, spec: ModelSpec, *, file: Path) -> None:
    """Print what should be known of a map before it is made."""
    if spec.notice:
        console.print(f"note: {spec.notice}")
    if emulates_bfloat16(recipe):
        console.print(f"note: {SLOW_BFLOAT16}")
    if recipe.source.kind == "simulated":
        console.print("note: the scenes are simulated; the map shows no real place")
    elif spec.is_simulated:
        console.print(
            "warning: these weights have never seen a real scene, so nothing is known of this "
            "map's accuracy; train your own, with labels in the recipe's samples section: bigmap "
            f"extract {file}, then bigmap train {file}",
            markup=False,
        )


def describe_weights(recipe: Recipe) -> str:
    """Tell that a recipe maps with the weights that its training wrote, and how far that is."""
    assert recipe.training is not None
    weights = recipe.training.weights
    said = f"maps with {weights}, which training wrote"
    if TrainingFolder(weights).is_unfinished():
        said += "; that training has not ended, so these are the best of its epochs so far"
    return said


def show_summary(console: Console, summary: RunSummary, output: str) -> None:
    """Print the audit of a run for people."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(summary.states.items()))
    console.print(f"audit: {summary.planned} planned = {states or 'none'}", markup=False)
    if summary.missing:
        console.print(f"audit: {summary.missing} blocks have no record")
    for key in summary.missing_shards[:10]:
        console.print(f"audit: {key} is missing or has another size", markup=False)
    for block, error in summary.failures[:10]:
        console.print(f"failed: {block}: {error}", markup=False)
    rate = summary.mapped_km2 / summary.elapsed_s * 3600 if summary.elapsed_s else 0
    console.print(
        f"{format_km2(summary.mapped_km2)} km² in {format_duration(summary.elapsed_s)}, "
        f"{rate:,.0f} km²/h, {describe_slowest(summary.seconds)}"
    )
    console.print(describe_without(summary.without_data_km2))
    if summary.replaced:
        console.print(describe_replaced(summary.replaced), markup=False)
    if summary.states["degraded"]:
        console.print(
            f"{summary.states['degraded']} blocks lack dates that could not be read: try them "
            "again with the same command and --resume"
        )
    if summary.stopped:
        console.print("stopped early: go on with the same command and --resume")
    elif summary.is_blank:
        console.print(
            "empty: no pixel has a value; check area, source.start, source.end, source.mask and "
            "dates.min_clear_percent"
        )
    elif summary.exit_code and not summary.replaced:
        console.print("incomplete: do the rest with the same command and --resume")
    console.print(f"map: {output}", markup=False)


def summary_dict(summary: RunSummary, output: str) -> dict[str, Any]:
    """Return a summary for scripts."""
    counts = {
        name: dict(getattr(summary, name)) for name in ("states", "seconds", "without_data_km2")
    }
    return asdict(summary) | counts | {"output": output, "exit_code": summary.exit_code}
