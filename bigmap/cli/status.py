"""``bigmap status``: how far a run is."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from bigmap.cli.options import JsonOption
from bigmap.mapping.progress import (
    describe_replaced,
    describe_slowest,
    describe_without,
    format_km2,
)
from bigmap.mapping.status import RunStatus, read_status


def status_command(
    run: Annotated[str, typer.Argument(help="The map or its run folder.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show how far a run is; works from any shell while it goes on."""
    status = read_status(run)
    if as_json:
        typer.echo(json.dumps(status_dict(status)))
    else:
        show_status(Console(highlight=False, soft_wrap=True), status)


def show_status(console: Console, status: RunStatus) -> None:
    """Print the status of a run for people."""
    lease = status.lease
    if lease is not None and lease.is_alive:
        console.print(f"running: process {lease.pid} on {lease.host}")
    else:
        end = "finished" if status.mapped_km2 else "finished, but no pixel has a value"
        console.print(end if status.is_whole else "not running, not complete: go on with --resume")
    for line in status.damage:
        console.print(line, markup=False)
    if not status.has_map:
        console.print(f"{status.output}: its metadata are missing or damaged", markup=False)
    if status.lost:
        console.print(f"{len(status.lost)} blocks recorded, but their objects are not there")
    states = ", ".join(f"{count} {state}" for state, count in sorted(status.states.items()))
    console.print(
        f"{status.planned} blocks planned: {states or 'none recorded'}, {status.missing} missing"
    )
    console.print(f"{format_km2(status.mapped_km2)} km² mapped, last block {status.last or 'none'}")
    console.print(describe_slowest(Counter(status.seconds)))
    for block, error in status.failures[:10]:
        console.print(f"failed: {block}: {error}", markup=False)
    console.print(describe_without(status.without_data_km2))
    if status.replaced:
        console.print(describe_replaced(status.replaced), markup=False)


def status_dict(status: RunStatus) -> dict[str, Any]:
    """Return a status for scripts."""
    counts = {
        "states": dict(status.states),
        "without_data_km2": dict(status.without_data_km2),
        "missing": status.missing,
    }
    return asdict(status) | counts | {"running": status.is_running, "whole": status.is_whole}
