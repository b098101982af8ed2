"""``bigmap cluster``: which clusters there are, and whether one works."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bigmap.cli.ending import USER_ERROR, say
from bigmap.cli.options import JsonOption
from bigmap.clusters.checks import ClusterReport, check_cluster
from bigmap.config.loading import list_clusters, load_cluster
from bigmap.errors import RecipeError

app = typer.Typer(
    help="List the clusters that --cluster can name, and try one.", no_args_is_help=True
)


@app.command("list", epilog="Example: bigmap cluster list")
def list_command(as_json: JsonOption = False) -> None:
    """List the clusters that --cluster can name here."""
    rows = []
    for name, file in list_clusters().items():
        try:
            kind, error = str(load_cluster(file or name).kind), ""
        except RecipeError as problem:
            kind, error = "-", str(problem)
        rows.append({"name": name, "kind": kind, "file": file, "error": error})
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("name", "kind", "file", box=None)
    for row in rows:
        table.add_row(row["name"], row["kind"], row["error"] or row["file"] or "(needs none)")
    Console(highlight=False).print(table)


@app.command(
    "check",
    epilog="Example: bigmap cluster check cluster/slurm-gpu.yaml --output /scratch/me/maps",
)
def check_command(
    cluster: Annotated[str, typer.Argument(metavar="FILE", help="Cluster file, or its name.")],
    output: Annotated[
        str, typer.Option(help="Folder or URL where maps will go.", show_default=False)
    ],
    reads: Annotated[
        str | None, typer.Option("--cog", help="A COG that workers must read, such as a band.")
    ] = None,
    wait_minutes: Annotated[
        float, typer.Option(min=0.0, help="Wait so long for all workers after the first.")
    ] = 10.0,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override a field: cluster.max_jobs=2."),
    ] = [],  # noqa: B006 - typer reads the default
    as_json: JsonOption = False,
) -> None:
    """Start a cluster, try what a run needs on each worker, and stop it. Exit code 2: some fail."""
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    report = check_cluster(
        load_cluster(cluster, settings),
        output,
        reads=reads,
        wait_s=60 * wait_minutes,
        note=lambda message: console.print(message, markup=False),
    )
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"problems": report.problems}))
    else:
        show_report(Console(highlight=False), report)
    for problem in report.problems:
        say(problem)
    raise typer.Exit(USER_ERROR if report.problems else 0)


def show_report(console: Console, report: ClusterReport) -> None:
    """Print what was found for people."""
    table = Table("worker", "host", "cores", "memory", "blocks", "device", "works", box=None)
    for worker in report.workers:
        device = worker.device
        gpu = f"{device.name}, {device.memory_gb:.0f} GB" if device and device.name else "cpu"
        table.add_row(
            worker.worker,
            worker.host,
            str(worker.cores),
            f"{worker.memory_gb:.1f} GB",
            str(worker.blocks),
            gpu,
            "no" if worker.problems else "yes",
        )
    console.print(table)
    versions = next((worker.versions for worker in report.workers if worker.versions), {})
    console.print(", ".join(f"{name} {number}" for name, number in versions.items()), markup=False)
    working = sum(not worker.problems for worker in report.workers)
    console.print(f"{working} of {report.wanted} workers can work; came in {report.waited_s:.0f} s")
