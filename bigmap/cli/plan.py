"""``bigmap plan``: what a run would do, and what it would cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from bigmap import api, simulate
from bigmap.cli.options import (
    BboxOption,
    ClusterOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SourceOption,
    read_recipe,
)
from bigmap.mapping.estimates import describe_clusters, estimate_clusters
from bigmap.mapping.loads import Estimate, estimate_part, estimate_plan
from bigmap.mapping.plans import Plan
from bigmap.models.choosing import advise_weights


def plan_command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    bbox: BboxOption = None,
    source: SourceOption = None,
    cluster: ClusterOption = None,
    price: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", min=0, help="Gives the cost on GPUs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do, and what the catalogue says, without mapping anything."""
    plan = api.plan(read_recipe(recipe, settings, bbox, source, cluster=cluster))
    estimate = estimate_plan(plan)
    clusters, assumptions = estimate_clusters(
        plan.recipe, plan.model, estimate, is_remote=plan.is_remote, price_per_gpu_hour=price
    )
    if as_json:
        content: dict[str, Any] = {
            "estimate": asdict(estimate),
            "weights": plan.model.spec.weights,
            "clusters": [asdict(each) for each in clusters],
            "assumptions": assumptions,
        }
        if plan.scenes is not None:
            content["simulated"] = scenes_dict(plan.scenes)
        zones = {
            part.name: {
                "estimate": asdict(estimate_part(part)),
                "audit": asdict(part.catalogue.audit),
            }
            for part in plan.parts
            if part.name
        }
        content |= {"zones": zones} if zones else {"audit": asdict(plan.only.catalogue.audit)}
        typer.echo(json.dumps(content))
        return
    console = Console(highlight=False, soft_wrap=True)
    show_plan(console, plan, estimate)
    if plan.model.spec.is_random:
        console.print(
            f"warning: {plan.model.spec.name} has no weights, so bigmap run refuses: "
            f"{advise_weights(plan.recipe)}",
            markup=False,
        )
    for line in [*describe_clusters(clusters), *(f"assumed: {each}" for each in assumptions)]:
        console.print(line, markup=False)


def show_plan(console: Console, plan: Plan, estimate: Estimate) -> None:
    """Print a plan for people."""
    grid, spec = plan.recipe.grid, plan.model.spec
    console.print(
        f"{plan.recipe.name}: {estimate.area_km2:,.0f} km² in {grid.crs}, "
        f"{grid.gsd_m:g} m to {grid.gsd_m / spec.upscale:g} m with {spec.name}"
    )
    console.print(
        f"{estimate.blocks} blocks of {grid.block_px} px, {estimate.items} items on "
        f"{estimate.dates} dates"
    )
    console.print(_describe_windows(plan, estimate))
    console.print(
        f"reads up to {estimate.read_gb:,.1f} GB (uncompressed), writes "
        f"{estimate.written_gb:,.2f} GB (uncompressed), at most {estimate.memory_gb:.1f} GB "
        "of memory per worker"
    )
    for part in plan.parts:
        before = f"{part.name}: " if part.name else ""
        if part.name:
            console.print(
                f"{before}{part.area.area_km2:,.0f} km², {len(part.blocks)} blocks, "
                f"{len(part.catalogue.rows)} items"
            )
        for line in part.catalogue.audit.lines():
            console.print(f"{before}{line}", markup=False)
    if plan.scenes is not None:
        show_scenes(console, plan.scenes)


def _describe_windows(plan: Plan, estimate: Estimate) -> str:
    """Say how the input is cut, which is the same for all parts, and how much is computed twice."""
    part = plan.parts[0]
    core_px = part.lattice.core_px
    return (
        f"windows of {core_px + 2 * part.halo_px} px around cores of {core_px} px: the model "
        f"computes {estimate.window_km2 / estimate.block_km2:.2f} pixels for each of its blocks'"
    )


def show_scenes(console: Console, stock: simulate.SceneStock) -> None:
    """Print which simulated scenes a run would render."""
    console.print(
        f"simulated: {len(stock.scenes):,} scenes of {stock.tiles} tiles on {stock.days} days, "
        f"{stock.pixels / 1e6:,.0f} Mpx, at most {stock.bytes / 1e9:,.2f} GB, which fit into the "
        f"{stock.max_bytes / 1e9:,.2f} GB of source.cache_gb"
    )
    console.print(
        f"simulated: {len(stock.cached):,} scenes ({stock.cached_bytes / 1e9:,.2f} GB) are in "
        f"{stock.cache}, {stock.lacking:,} ({(stock.bytes - stock.cached_bytes) / 1e9:,.2f} GB) "
        "would be rendered",
        markup=False,
    )
    if stock.lacking:
        console.print(
            "forecast: the clouds of scenes that are not rendered are unknown, so all of these "
            "scenes count above, whatever source.max_cloud_percent"
        )


def scenes_dict(stock: simulate.SceneStock) -> dict[str, Any]:
    """Return what :func:`show_scenes` prints as plain values."""
    return {
        "scenes": len(stock.scenes),
        "tiles": stock.tiles,
        "days": stock.days,
        "pixels": stock.pixels,
        "bytes": round(stock.bytes),
        "cache": str(stock.cache),
        "cached_scenes": len(stock.cached),
        "cached_bytes": round(stock.cached_bytes),
        "limit_bytes": stock.max_bytes,
    }
