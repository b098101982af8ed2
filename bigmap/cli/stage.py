"""``bigmap stage``: the scenes of a recipe, for nodes without network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bigmap import api
from bigmap.cli.options import (
    BboxOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SourceOption,
    read_recipe,
)
from bigmap.config import Recipe
from bigmap.config.areas import UTM
from bigmap.mapping.progress import StageProgress
from bigmap.mapping.staging.folder import ITEMS
from bigmap.mapping.staging.stages import JOBS, StageSummary, verify_stage
from bigmap.signals import stop_on_signals


def stage_command(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="Folder for the scenes.", show_default=False)],
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    bbox: BboxOption = None,
    source: SourceOption = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Copy whole files, not only what the run reads.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Files fetched at once.")] = JOBS,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare all files with their checksums.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the scenes of a recipe, for compute nodes without network.

    Map them with bigmap run RECIPE --staged FOLDER. What was interrupted goes on with the same
    command. Exit code 0: done; 3: some files failed; 75: stopped.
    """
    loaded = read_recipe(recipe, settings, bbox, source)
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    with stop_on_signals():
        if verify:
            summary = verify_stage(out, jobs=jobs)
        else:
            reporter = StageProgress(console)
            summary = api.stage(loaded, out, whole=whole, jobs=jobs, reporter=reporter)
    if as_json:
        typer.echo(json.dumps(asdict(summary) | {"exit_code": summary.exit_code}))
    show_stage(console, summary, out, loaded)
    raise typer.Exit(summary.exit_code)


def show_stage(console: Console, summary: StageSummary, out: Path, recipe: Recipe) -> None:
    """Print what was staged, and the line of a recipe that reads it."""
    for file, reason in summary.failures:
        console.print(f"failed: {file}: {reason}", markup=False)
    console.print(
        f"staged: {summary.files} files of {summary.items} items: {summary.kept} kept, "
        f"{summary.fetched} fetched ({summary.fetched_bytes / 1e9:,.2f} GB), "
        f"{len(summary.failures)} failed"
    )
    if summary.failures:
        console.print("incomplete: fetch the rest with the same command, without --verify")
    if recipe.grid.crs == UTM:
        return  # Each zone has items of its own, which are no source for another.
    kept = {"start", "end", "max_cloud_percent", "harmonise", "mask"}
    source = {"kind": "files", "files": [str((out / ITEMS).absolute())]}
    source |= recipe.source.model_dump(mode="json", include=kept)
    # JSON is YAML too, and stands on one line.
    console.print(f"source: {json.dumps(source, ensure_ascii=False)}", markup=False)
