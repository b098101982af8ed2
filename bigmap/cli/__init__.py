"""The command line: parse, load, call one function, say what happened."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from bigmap.cli.cluster import app as cluster_app
from bigmap.cli.ending import run_app
from bigmap.cli.evaluate import app as evaluate_app
from bigmap.cli.models import app as models_app
from bigmap.cli.plan import plan_command
from bigmap.cli.run import run_command
from bigmap.cli.samples import extract_command
from bigmap.cli.simulate import simulate_command
from bigmap.cli.stage import stage_command
from bigmap.cli.status import status_command
from bigmap.cli.train import train_command

app = typer.Typer(
    name="bigmap",
    help="Maps of any area from Sentinel-2, super-resolved and segmented, on Dask.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for name, command, example in (
    ("plan", plan_command, "recipes/catalonia.yaml --bbox 1.0,41.6,1.2,41.8"),
    ("run", run_command, "recipes/catalonia.yaml --cluster slurm-gpu --limit 4"),
    ("status", status_command, "maps/catalonia.zarr"),
    ("stage", stage_command, "recipes/catalonia.yaml --out /scratch/scenes"),
    ("extract", extract_command, "recipes/spinet.yaml --source simulated"),
    ("train", train_command, "recipes/spinet.yaml --processes 2"),
    ("simulate", simulate_command, "recipes/catalonia.yaml --out world --bbox 0.6,41.6,0.7,41.7"),
):
    app.command(name, epilog=f"Example: bigmap {name} {example}")(command)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(models_app, name="models")
app.add_typer(cluster_app, name="cluster")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process.

    Parameters
    ----------
    arguments
        By default those of the process; without any, the help is shown.
    """
    run_app(app, list(sys.argv[1:] if arguments is None else arguments))
