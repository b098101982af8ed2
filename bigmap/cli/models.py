"""``bigmap models``: what a recipe can name, and weights of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bigmap.cli.options import JsonOption
from bigmap.config.strict_yaml import parse_yaml
from bigmap.errors import ModelError
from bigmap.models import OptionValue, Training, build_model, find_model, list_models, read_card
from bigmap.models.facts import ModelFacts, describe_class, describe_model, facts_dict
from bigmap.models.published import FORMATS, Images, describe_images, import_weights

app = typer.Typer(
    help="List the models that a recipe can name, show one, import weights of others.",
    invoke_without_command=True,
    epilog="Example: bigmap models show spinet",
)

SetOption = Annotated[
    list[str], typer.Option("--set", metavar="OPTION=VALUE", help="An option of the model.")
]


@app.callback(invoke_without_command=True)
def list_command(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the models that a recipe can name."""
    if context.invoked_subcommand is not None:
        return
    facts = [describe_model(build_model(name)) for name in list_models()]
    if as_json:
        typer.echo(json.dumps([facts_dict(each) for each in facts]))
        return
    table = Table(box=None)
    for column in ("name", "kind", "bands", "scale", "halo", "parameters", "GFLOP/km²"):
        table.add_column(column, no_wrap=True)
    table.add_column("paper")
    for each in facts:
        table.add_row(
            each.name,
            each.kind,
            str(len(each.bands)),
            f"x{each.upscale}",
            f"{each.halo_px} px",
            f"{each.parameters:,}",
            f"{each.gflop_per_km2:,.1f}",
            each.paper or "-",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("GFLOP per km² of 12 dates at 10 m, without halos. More: bigmap models show NAME")


@app.command("show", epilog="Example: bigmap models show spinet --set size=small")
def show_command(
    name: Annotated[str, typer.Argument(help="A model, or a weights file.", show_default=False)],
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    as_json: JsonOption = False,
) -> None:
    """Show one model with its options, or the card of a weights file."""
    console = Console(highlight=False, soft_wrap=True)
    training: Training | None = None
    if name.endswith(".safetensors"):
        card = read_card(name)
        training = card.training
        model = build_model(card.name, weights=name)
    else:
        model = build_model(name, parse_options(settings))
    facts = describe_model(model)
    if as_json:
        more = {"training": vars(training)} if training else {}
        typer.echo(json.dumps(facts_dict(facts) | more))
        return
    show_facts(console, facts)
    if training:
        console.print(f"trained on: {training.data}", markup=False)
        for score, value in training.scores.items():
            console.print(f"score: {score} {value:.4g}", markup=False)
    console.print()
    console.print(describe_class(find_model(facts.name)), markup=False)


@app.command(
    "import",
    epilog="Example: bigmap models import piunet model.pt --out weights/piunet.safetensors "
    "--input-scale 10000 --input-mean 2219 --input-std 1365",
)
def import_command(
    name: Annotated[str, typer.Argument(help="The model the weights are of.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="Weights: PyTorch or safetensors.")],
    out: Annotated[Path, typer.Option(help="Where ours go, .safetensors.", show_default=False)],
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    bands: Annotated[
        str | None, typer.Option(help="Common names of the bands, with commas between.")
    ] = None,
    data: Annotated[str, typer.Option(help="What the weights were trained on.")] = "unknown",
    scale: Annotated[
        float | None,
        typer.Option("--input-scale", help="The network saw reflectance times this."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option("--input-mean", help="Then less this, one for each band or one for all."),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option("--input-std", help="Then divided by this, one for each band or one for all."),
    ] = None,
) -> None:
    """Turn published weights into ours, with a card.

    What the file does not tell must be said: the units of its images, how they were standardised,
    and options that no tensor shows.
    """
    model = import_weights(
        name,
        file,
        out,
        options=parse_options(settings),
        bands=tuple(band.strip() for band in bands.split(",")) if bands else None,
        images=Images(
            scale, _parse_numbers(mean, "--input-mean"), _parse_numbers(std, "--input-std")
        ),
        data=data,
    )
    typer.echo(f"weights: {out}\ncard: {out.with_suffix('.json')}")
    for line in describe_images(model):
        typer.echo(line)
    options = ", ".join(f"{key}={value}" for key, value in model.options.items())
    typer.echo(f"options: {options or '-'}")
    if name not in FORMATS:
        typer.echo(
            f"note: {name} has no published names, so the file's own were taken; where it holds no "
            "statistics and --input-* says none, those above are but typical ones"
        )


def _parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ModelError(f"{option} {text!r}: write numbers with commas between") from None


def show_facts(console: Console, facts: ModelFacts) -> None:
    """Print what a model is for people."""
    rows = {
        "name": facts.name,
        "what": facts.title,
        "paper": facts.paper or "-",
        "kind": facts.kind,
        "bands": ", ".join(facts.bands),
        "upscale": f"x{facts.upscale}",
        "halo": f"{facts.halo_px} px, windows at multiples of {facts.multiple_px} px",
        "layers": ", ".join(facts.layers),
        "parameters": f"{facts.parameters:,}",
        "GFLOP/km²": f"{facts.gflop_per_km2:,.1f}",
        "options": ", ".join(f"{key}={value}" for key, value in facts.options.items()) or "-",
    }
    for label, text in rows.items():
        console.print(f"{label}: {text}", markup=False)


def parse_options(settings: list[str]) -> dict[str, OptionValue]:
    """Read option=value settings; values are YAML."""
    options: dict[str, OptionValue] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        value = parse_yaml(text, origin=f"--set {key}")
        if not separator or not isinstance(value, bool | int | float | str):
            raise ModelError(f"--set {setting!r}: write it as option=value")
        options[key] = value
    return options
