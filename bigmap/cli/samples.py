"""``bigmap extract``: training chips of a recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

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
from bigmap.learning.chips import SPLITS
from bigmap.learning.samples import Counts, ExtractSummary, purpose_of_samples
from bigmap.learning.samples.drawing import PICTURE_FILE
from bigmap.learning.samples.joining import COUNTS_FILE
from bigmap.mapping.places import Attempt, check_place
from bigmap.mapping.progress import ProgressReporter, describe_slowest, format_duration
from bigmap.mapping.run_folder import RunFolder
from bigmap.signals import stop_on_signals


def extract_command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    bbox: BboxOption = None,
    source: SourceOption = None,
    cluster: ClusterOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Cut so many blocks only.")] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cut training chips with their labels, as the recipe's samples section says.

    Exit code 0: done; 3: some blocks failed; 75: stopped, go on with --resume.
    """
    loaded = read_recipe(recipe, settings, bbox, source, cluster=cluster)
    check_place(loaded, purpose_of_samples(loaded), Attempt(resume, overwrite))
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    if loaded.source.kind == "simulated":
        console.print("note: the scenes are simulated; what is learnt from them is too")
    with stop_on_signals():
        summary = api.extract(
            loaded,
            resume=resume,
            overwrite=overwrite,
            limit=limit,
            reporter=ProgressReporter(console),
        )
    if as_json:
        counts = {"states": dict(summary.states), "seconds": dict(summary.seconds)}
        typer.echo(json.dumps(asdict(summary) | counts | {"exit_code": summary.exit_code}))
    show_extraction(console, summary)
    raise typer.Exit(summary.exit_code)


def show_extraction(console: Console, summary: ExtractSummary) -> None:
    """Print what an extraction did, for people."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(summary.states.items()))
    console.print(f"audit: {summary.planned} planned = {states or 'none'}", markup=False)
    for block, error in summary.failures[:10]:
        console.print(f"failed: {block}: {error}", markup=False)
    if summary.counts is not None:
        console.print(table_of(summary.counts))
        _show_losses(console, summary, summary.counts)
    console.print(f"{format_duration(summary.elapsed_s)}, {describe_slowest(summary.seconds)}")
    if summary.stopped:
        console.print("stopped early: go on with the same command and --resume")
    elif summary.exit_code:
        console.print("incomplete: do the rest with the same command and --resume")
    console.print(f"chips: {summary.path}", markup=False)
    if summary.counts is not None:
        folder = RunFolder(summary.path).path
        console.print(f"beside them: {folder}/{PICTURE_FILE}, {folder}/{COUNTS_FILE}", markup=False)


def table_of(counts: Counts) -> Table:
    """Return chips and labelled pixels by split and class as a table."""
    table = Table(box=None)
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    table.add_row("chips", *(f"{counts.chips[split]:,}" for split in SPLITS))
    if not counts.class_px:
        return table
    totals = {split: max(1, sum(counts.class_px[split].values())) for split in SPLITS}
    for name in counts.class_px[SPLITS[0]]:
        cells = [
            f"{px:,} px {100 * px / totals[split]:5.1f} %"
            for split in SPLITS
            for px in [counts.class_px[split][name]]
        ]
        table.add_row(name, *cells)
    table.add_row("unlabelled", *(f"{counts.unlabelled_px[split]:,} px" for split in SPLITS))
    return table


def _show_losses(console: Console, summary: ExtractSummary, counts: Counts) -> None:
    places = ", ".join(f"{count:,} {split}" for split, count in summary.candidates.items())
    console.print(f"places for chips: {places or 'unknown'}")
    for why, count in sorted(counts.refused.items()):
        console.print(f"left out: {count:,} with {why}")
    if counts.left_out:
        console.print(f"left out: {counts.left_out:,} that samples.max_chips did not draw")
    empty = [split for split in SPLITS if not counts.chips[split]]
    if empty:
        console.print(f"note: no chip for {' and '.join(empty)}")
