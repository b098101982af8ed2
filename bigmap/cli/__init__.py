"""The command line: parse, load, call one function, say what happened."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from bigmap import api, simulate
from bigmap.area import read_area
from bigmap.cli.cluster import app as cluster_app
from bigmap.cli.evaluate import EPILOG as EVALUATE_EPILOG
from bigmap.cli.evaluate import evaluate_command
from bigmap.cli.models import app as models_app
from bigmap.cli.options import (
    BboxOption,
    ClusterOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SourceOption,
    read_recipe,
)
from bigmap.cli.samples import register as register_samples
from bigmap.cli.streams import (
    PIPE_CLOSED,
    StreamError,
    drop_streams,
    flush_streams,
    open_streams,
)
from bigmap.cli.train import train_command
from bigmap.config import Recipe
from bigmap.errors import (
    BigmapError,
    LostClusterError,
    LostRankError,
    OutputError,
    StoppedError,
)
from bigmap.estimates import describe_clusters, emulates_bfloat16, estimate_clusters
from bigmap.models import refuse_random
from bigmap.models.devices import SLOW_BFLOAT16
from bigmap.planning import (
    Plan,
    advise_weights,
    model_choice,
    request_scenes,
    use_trained_weights,
)
from bigmap.progress import (
    ProgressReporter,
    StageProgress,
    describe_replaced,
    describe_slowest,
    describe_without,
    format_duration,
    format_km2,
)
from bigmap.redaction import redact
from bigmap.runner import RunSummary, stop_on_signals
from bigmap.runs import RunStatus, check_output, read_status
from bigmap.staging import ITEMS, JOBS, StageSummary, verify_stage
from bigmap.training.folder import TrainingFolder
from bigmap.zones import ZonePlans, is_utm, verify_zones

USER_ERROR = 2
INTERRUPTED = 130
"""Exit code after Ctrl-C, which typer gives."""
STOPPED = 75

app = typer.Typer(
    name="bigmap",
    help="Maps of any area from Sentinel-2, super-resolved and segmented, on Dask.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(models_app, name="models")
app.add_typer(cluster_app, name="cluster")
register_samples(app)
app.command("evaluate", epilog=EVALUATE_EPILOG)(evaluate_command)
app.command("train", epilog="Example: bigmap train recipes/spinet.yaml --processes 2")(
    train_command
)


@app.command("plan", epilog="Example: bigmap plan recipes/catalonia.yaml --bbox 1.0,41.6,1.2,41.8")
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
    estimate = plan.estimate()
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
        if isinstance(plan, ZonePlans):
            content["zones"] = {
                group: {"estimate": asdict(each.estimate()), "audit": asdict(each.catalogue.audit)}
                for group, each in zip(plan.groups, plan.plans, strict=True)
            }
        else:
            content["audit"] = asdict(plan.catalogue.audit)
        typer.echo(json.dumps(content))
        return
    console = Console(highlight=False, soft_wrap=True)
    show_plan(console, plan, asdict(estimate))
    if plan.model.spec.is_random:
        console.print(
            f"warning: {plan.model.spec.name} has no weights, so bigmap run refuses: "
            f"{advise_weights(plan.recipe)}",
            markup=False,
        )
    for line in [*describe_clusters(clusters), *(f"assumed: {each}" for each in assumptions)]:
        console.print(line, markup=False)


@app.command(
    "run", epilog="Example: bigmap run recipes/catalonia.yaml --cluster slurm-gpu --limit 4"
)
def run_command(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    bbox: BboxOption = None,
    source: SourceOption = None,
    cluster: ClusterOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Map so many blocks only.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    output: Annotated[str | None, typer.Option(help="Where the map goes, ends in .zarr.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
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
    check_output(loaded, resume=resume or redo is not None, overwrite=overwrite)
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    spec = model_choice(loaded.model).build().spec
    if not allow_random_weights:
        refuse_random(spec, advise_weights(loaded))
    if loaded.model.weights != given.model.weights:
        console.print(f"note: {describe_weights(given)}", markup=False)
    if spec.notice:
        console.print(f"note: {spec.notice}")
    if emulates_bfloat16(loaded):
        console.print(f"note: {SLOW_BFLOAT16}")
    if loaded.source.kind == "simulated":
        console.print("note: the scenes are simulated; the map shows no real place")
    elif spec.is_simulated:
        console.print(
            "warning: these weights have never seen a real scene, so nothing is known of this "
            "map's accuracy; train your own, with labels in the recipe's samples section: bigmap "
            f"extract {recipe}, then bigmap train {recipe}",
            markup=False,
        )
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


@app.command("stage", epilog="Example: bigmap stage recipes/catalonia.yaml --out /scratch/scenes")
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
            verified = partial(verify_zones, loaded) if is_utm(loaded) else verify_stage
            summary = verified(out, jobs=jobs)
        else:
            reporter = StageProgress(console)
            summary = api.stage(loaded, out, whole=whole, jobs=jobs, reporter=reporter)
    if as_json:
        typer.echo(json.dumps(asdict(summary) | {"exit_code": summary.exit_code}))
    show_stage(console, summary, out, loaded)
    raise typer.Exit(summary.exit_code)


@app.command("status", epilog="Example: bigmap status maps/catalonia.zarr")
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


@app.command(
    "simulate",
    epilog="Example: bigmap simulate recipes/catalonia.yaml --out world --bbox 0.6,41.6,0.7,41.7",
)
def simulate_command(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="New folder for all files.", show_default=False)],
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    bbox: BboxOption = None,
    flavour: Annotated[
        str, typer.Option(help=f"Catalogue to imitate: {', '.join(simulate.FLAVOURS)}.")
    ] = "earth-search",
    truth: Annotated[bool, typer.Option(help="Write the truth at 2.5 m too.")] = True,
    max_gb: Annotated[float, typer.Option(min=0, help="Refuse more scenes than this.")] = 20.0,
) -> None:
    """Write simulated scenes of a recipe's area and days, their items, and the truth below."""
    loaded = read_recipe(recipe, settings, bbox, None)
    check_new_folder(out)
    request = request_scenes(loaded, flavour=flavour)
    area = read_area(crs=loaded.grid.crs, **loaded.area.model_dump())
    world = simulate.write_world(
        request,
        out,
        truth_bounds=area.bounds,
        layers=simulate.LAYERS if truth else (),
        max_bytes=int(max_gb * 1e9),
    )
    show_world(Console(highlight=False, soft_wrap=True), world, request)


def describe_weights(recipe: Recipe) -> str:
    """Tell that a recipe maps with the weights that its training wrote, and how far that is."""
    assert recipe.training is not None
    weights = recipe.training.weights
    said = f"maps with {weights}, which training wrote"
    if TrainingFolder(weights).is_unfinished():
        said += "; that training has not ended, so these are the best of its epochs so far"
    return said


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something, so that two worlds never mix."""
    try:
        taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be read ({error.strerror})") from None
    if taken:
        raise OutputError(f"--out {folder}: exists and is not empty; choose another folder")


def show_world(console: Console, world: simulate.World, request: simulate.SceneRequest) -> None:
    """Print what was written, and the line of a recipe that reads it."""
    features = json.loads(world.items.read_text())["features"]
    days = {feature["properties"]["datetime"][:10] for feature in features}
    console.print(f"scenes: {len(features)} on {len(days)} days", markup=False)
    for name, file in (
        ("items", world.items),
        ("catalogue", world.catalog),
        ("table", world.table),
    ):
        console.print(f"{name}: {file}", markup=False)
    for name, file in (world.truth | world.polygons).items():
        console.print(f"truth, {name.replace('_', ' ')}: {file}", markup=False)
    mask = next(name for name in features[0]["assets"] if name.lower().startswith("scl"))
    source = {
        "kind": "files",
        "files": [str(world.items.resolve())],
        "start": str(request.start),
        "end": str(request.end),
        "mask": {"kind": "scl", "asset": mask},
    }
    # JSON is YAML too, and stands on one line.
    console.print(f"source: {json.dumps(source, ensure_ascii=False)}", markup=False)


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
    if is_utm(recipe):
        return  # Each zone has items of its own, which are no source for another.
    kept = {"start", "end", "max_cloud_percent", "harmonise", "mask"}
    source = {"kind": "files", "files": [str((out / ITEMS).absolute())]}
    source |= recipe.source.model_dump(mode="json", include=kept)
    # JSON is YAML too, and stands on one line.
    console.print(f"source: {json.dumps(source, ensure_ascii=False)}", markup=False)


def show_plan(console: Console, plan: Plan | ZonePlans, estimate: dict[str, Any]) -> None:
    """Print a plan for people."""
    grid, spec = plan.recipe.grid, plan.model.spec
    console.print(
        f"{plan.recipe.name}: {estimate['area_km2']:,.0f} km² in {grid.crs}, "
        f"{grid.gsd_m:g} m to {grid.gsd_m / spec.upscale:g} m with {spec.name}"
    )
    console.print(
        f"{estimate['blocks']} blocks of {grid.block_px} px, {estimate['items']} items on "
        f"{estimate['dates']} dates"
    )
    console.print(
        f"reads up to {estimate['read_gb']:,.1f} GB (uncompressed), writes "
        f"{estimate['written_gb']:,.2f} GB (uncompressed), at most {estimate['memory_gb']:.1f} GB "
        "of memory per worker"
    )
    if isinstance(plan, ZonePlans):
        for group, each in zip(plan.groups, plan.plans, strict=True):
            console.print(
                f"{group}: {each.area.area_km2:,.0f} km², {len(each.blocks)} blocks, "
                f"{len(each.catalogue.rows)} items"
            )
            for line in each.catalogue.audit.lines():
                console.print(f"{group}: {line}", markup=False)
    else:
        for line in plan.catalogue.audit.lines():
            console.print(line, markup=False)
    if plan.scenes is not None:
        show_scenes(console, plan.scenes)


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


def summary_dict(summary: RunSummary, output: str) -> dict[str, Any]:
    """Return a summary for scripts."""
    counts = {
        name: dict(getattr(summary, name)) for name in ("states", "seconds", "without_data_km2")
    }
    return asdict(summary) | counts | {"output": output, "exit_code": summary.exit_code}


def status_dict(status: RunStatus) -> dict[str, Any]:
    """Return a status for scripts."""
    counts = {
        "states": dict(status.states),
        "without_data_km2": dict(status.without_data_km2),
        "missing": status.missing,
    }
    return asdict(status) | counts | {"running": status.is_running, "whole": status.is_whole}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; what a user can mend ends in one sentence and exit code 2.

    Parameters
    ----------
    arguments
        By default those of the process; without any, the help is shown.
    """
    open_streams()
    try:
        try:
            code = run_command_line(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            flush_streams()
    except StreamError as error:
        code = PIPE_CLOSED if error.is_closed_pipe else USER_ERROR
        if not error.is_closed_pipe:
            with suppress(StreamError):
                say(f"what this command prints cannot be written ({error}); make room for it")
        drop_streams()
    sys.exit(code)


def run_command_line(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    logging.basicConfig(level=logging.CRITICAL)
    show_log("bigmap.simulate")
    show_log("bigmap.catalog")
    try:
        code: int = app(arguments or ["--help"], prog_name="bigmap", standalone_mode=False)
    except (StoppedError, LostClusterError, LostRankError) as error:
        fail(str(error), code=STOPPED)
    except BigmapError as error:
        fail(str(error))
    except typer.TyperException as error:
        fail(f"{error.format_message().rstrip('.')}; see bigmap --help")
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        fail("interrupted", code=INTERRUPTED)
    return code


def show_log(name: str) -> None:
    """Show what a part of bigmap says before a long wait, apart from the results."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger(name)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def fail(message: str, *, code: int = USER_ERROR) -> NoReturn:
    """Print a message as one line and end with an exit code."""
    say(message)
    sys.exit(code)


def say(message: str) -> None:
    """Print a message as one line on standard error."""
    line = " ".join(redact(message).split())
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"bigmap: {line}", markup=False)
