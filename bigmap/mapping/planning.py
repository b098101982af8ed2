"""Recipe -> Plan: grids, area, blocks and items; refuses what cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import shapely

from bigmap import simulate
from bigmap.area import list_utm_zones, lonlat_of, read_area
from bigmap.clusters.sizes import ClusterSizes, size_cluster
from bigmap.config import Recipe
from bigmap.config.areas import UTM
from bigmap.config.recipe import InferenceConfig
from bigmap.config.sources import SimulatedSource
from bigmap.errors import CatalogError, EmptyAreaError, RecipeError
from bigmap.grid import Area, Lattice
from bigmap.mapping.geometry import choose_windows
from bigmap.mapping.loads import check_memory
from bigmap.mapping.plan_checks import (
    check_coverage,
    check_inputs,
    check_pixels,
    check_scenes,
    check_size,
)
from bigmap.mapping.plans import Part, Plan
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.simulated import CACHE_LIMIT, forecast_items, list_scenes, request_scenes
from bigmap.mapping.staging.folder import read_staged, use_staged
from bigmap.mapping.windows import Windowing
from bigmap.models import LayerSpec, MapModel, ModelSpec, refuse_random
from bigmap.models.choosing import advise_weights
from bigmap.scenes.catalog import Audit, Catalogue, find_items
from bigmap.scenes.cube.loaders import epsg_of
from bigmap.scenes.cube.reader import mask_rule
from bigmap.scenes.items import ItemTable
from bigmap.zones import UtmZone

CONTEXT_CELLS = 3
"""Items are searched this many cells beyond the area: cells choose their dates as wholes, and
windows at the edge see their neighbours."""
NOTHING = Catalogue(ItemTable.of(()), Audit(0, 0, (), (), (), ()))


def make_plan(
    recipe: Recipe,
    *,
    purpose: Purpose | None = None,
    resume: bool = False,
    staged: Path | None = None,
    needs_weights: bool = False,
) -> Plan:
    """Derive the plan of a run; nothing is written.

    Parameters
    ----------
    recipe
        The recipe. Scenes of a simulated source that are not rendered are planned by their
        orbits, as if they had no clouds to go by.
    purpose
        By default the recipe's map.
    resume
        Take the items of the run that goes on; otherwise the source is searched.
    staged
        Folder of :func:`bigmap.mapping.staging.stages.stage_plan`: its scenes are read, and nothing
        else.
    needs_weights
        Refuse a network without weights.

    Raises
    ------
    BigmapError
        If the model, the area, the grid, the items or the memory do not fit together; the
        message names the field.
    """
    purpose = purpose or Purpose.of_map(recipe)
    model = purpose.choose_model(recipe).build()
    if needs_weights:
        refuse_random(model.spec, advise_weights(recipe))
    check_inputs(recipe, purpose)
    parts, nothing = [], RecipeError("area: lies in no UTM zone that it may be mapped in")
    for zone in _list_zones(recipe):
        try:
            part = _make_part(recipe, purpose, model, zone, resume=resume, staged=staged)
        except EmptyAreaError as error:
            if zone is None:
                raise
            nothing = error
            continue  # only the search for zones, which is generous, thought it touched
        except CatalogError as error:
            if zone is None:
                raise
            raise CatalogError(f"{zone.group}: {error}") from error
        parts.append(part)
    if not parts:
        raise nothing
    plan = Plan(recipe, purpose, tuple(parts))
    if plan.scenes is not None:
        plan.scenes.check_size(CACHE_LIMIT)
    return plan


def request_world(recipe: Recipe, *, flavour: str) -> tuple[simulate.SceneRequest, Area]:
    """Return the simulated scenes that a recipe would be mapped from, and its area.

    Parameters
    ----------
    recipe
        Whatever its source is.
    flavour
        Catalogue whose ways the items follow, of :data:`bigmap.simulate.FLAVOURS`.

    Raises
    ------
    BigmapError
        If the model, the area and the grid do not fit together.
    """
    purpose = Purpose.of_map(recipe)
    model = purpose.choose_model(recipe).build()
    windowing = choose_windowing(purpose.inference, model.spec, size_cluster(recipe.cluster))
    lattice = make_lattice(recipe, purpose, model, windowing, recipe.grid.crs)
    area = read_area(crs=lattice.crs, **recipe.area.model_dump())
    request = request_scenes(
        recipe, lattice=lattice, model=model, windowing=windowing, area=area, flavour=flavour
    )
    return request, area


def _list_zones(recipe: Recipe) -> list[UtmZone] | list[None]:
    """Return the zones in which the area may lie; None alone for a map with one grid."""
    if recipe.grid.crs != UTM:
        return [None]
    return list_utm_zones(**recipe.area.model_dump())


def _make_part(
    recipe: Recipe,
    purpose: Purpose,
    model: MapModel,
    zone: UtmZone | None,
    *,
    resume: bool,
    staged: Path | None,
) -> Part:
    part = _draft_part(recipe, purpose, model, zone)
    if staged is not None:
        staged = staged / part.name
    if resume:
        catalogue = RunFolder(purpose.path).part(part.name).read_items()
    elif staged is not None:
        catalogue = read_staged(staged)
    else:
        catalogue = _find_items(part)
    part = replace(part, catalogue=catalogue)
    check_coverage(part)
    check_scenes(part)
    check_memory(part)
    return part if staged is None else use_staged(part, staged)


def _draft_part(recipe: Recipe, purpose: Purpose, model: MapModel, zone: UtmZone | None) -> Part:
    """Return a part without its items; refuse what cannot work whatever they are."""
    _check_dates(purpose, model)
    sizes = size_cluster(recipe.cluster)
    windowing = choose_windowing(purpose.inference, model.spec, sizes)
    lattice = make_lattice(recipe, purpose, model, windowing, zone.crs if zone else recipe.grid.crs)
    area = read_area(crs=lattice.crs, zone=zone, **recipe.area.model_dump())
    extent = lattice.snap(area.bounds, lattice.extent_step_px)
    check_size(extent, lattice)
    part = Part(
        recipe, purpose, zone, lattice, area, extent, tuple(lattice.blocks_in(area, extent)),
        NOTHING, model, windowing, _choose_layers(recipe, model), sizes,
    )  # fmt: skip
    check_pixels(part)
    check_memory(part)
    if not isinstance(recipe.source, SimulatedSource):
        return part
    # Also for a run that goes on: the cache may have lost scenes since.
    request = request_scenes(recipe, lattice=lattice, model=model, windowing=windowing, area=area)
    return replace(part, scenes=list_scenes(recipe.source, request))


def _find_items(part: Part) -> Catalogue:
    """Search the source around the area."""
    lattice, source, items = part.lattice, part.recipe.source, None
    outline = shapely.intersection_all(list(part.area.parts))
    margin_m = CONTEXT_CELLS * lattice.cell_px * lattice.gsd_m
    around = outline.simplify(margin_m / 20).buffer(margin_m, quad_segs=4)
    mask_asset = mask_rule(source.mask).asset
    if isinstance(source, SimulatedSource):
        assert part.scenes is not None
        source, items = forecast_items(source, part.scenes)
    return find_items(
        source,
        bands=part.model.spec.bands,
        mask_asset=mask_asset,
        geometry_lonlat=lonlat_of(around, lattice.crs),
        items=items,
    )


def make_lattice(
    recipe: Recipe, purpose: Purpose, model: MapModel, windowing: Windowing, crs: str
) -> Lattice:
    """Join the recipe's grid with the model's upscale, and with the windows that suit it.

    Raises
    ------
    RecipeError
        If blocks are not whole shards, or the CRS or the model does not fit the grid.
    """
    settings = recipe.grid
    if crs == UTM:
        raise RecipeError(
            "grid.crs: utm stands for many grids, and one is needed here; give one zone, such as "
            "EPSG:32631"
        )
    upscale, multiple = model.spec.upscale, model.spec.multiple_px
    if (settings.block_px * upscale) % settings.shard_px:
        raise RecipeError(
            f"grid.block_px: {settings.block_px} px, upscaled {upscale} times, is "
            f"{settings.block_px * upscale} output px, which is not a multiple of grid.shard_px "
            f"{settings.shard_px}"
        )
    lattice = Lattice(
        crs=crs,
        gsd_m=settings.gsd_m,
        core_px=settings.core_px or settings.cell_px,
        cell_px=settings.cell_px,
        block_px=settings.block_px,
        upscale=upscale,
        shard_px=settings.shard_px,
        chunk_px=settings.chunk_px,
        anchor_m=settings.anchor_m,
    )
    if lattice.core_px % multiple:
        field = "core_px" if settings.core_px else "cell_px"
        raise RecipeError(
            f"grid.{field}: {lattice.core_px} is not a multiple of {multiple}, which "
            f"{model.spec.name} needs"
        )
    if recipe.reading.loader == "stackstac":
        try:
            epsg_of(crs)
        except ValueError as error:
            raise RecipeError(f"grid.crs: {error}; set reading.loader to odc-stac") from None
    dates = purpose.dates.max_per_cell
    return choose_windows(lattice, model, windowing, dates=dates, core_px=settings.core_px)


def _check_dates(purpose: Purpose, model: MapModel) -> None:
    most, asked = model.spec.max_dates, purpose.dates.max_per_cell
    if most is not None and asked > most:
        raise RecipeError(
            f"dates.max_per_cell: {asked} is more than the {most} that {model.spec.name} is built "
            f"for; lower it, or raise model.options.max_dates"
        )


def _choose_layers(recipe: Recipe, model: MapModel) -> tuple[LayerSpec, ...]:
    known = {layer.name: layer for layer in model.spec.layers}
    default = tuple(layer.name for layer in model.spec.default_layers)
    wanted = recipe.output.layers or default
    for name in wanted:
        if name not in known:
            raise RecipeError(
                f"output.layers: {model.spec.name} has no layer {name}; it has {', '.join(known)}"
            )
    return tuple(layer for layer in model.spec.layers if layer.name in wanted)


def choose_windowing(inference: InferenceConfig, spec: ModelSpec, sizes: ClusterSizes) -> Windowing:
    """Settle how windows are run, on the device that the cluster's workers have.

    Raises
    ------
    RecipeError
        If a GPU is asked for on a cluster without any.
    """
    settings = inference.model_dump()
    device = settings.pop("device")
    if sizes.is_like_driver:
        return Windowing.for_model(spec, **settings, device=device)
    if device == "cuda" and not sizes.has_gpu:
        raise RecipeError(
            f"inference.device: cuda is asked for, but the workers of this {sizes.kind} cluster "
            "have no GPU; choose another cluster file"
        )
    # The driver may have no GPU, or another one than its workers: their device is what counts.
    uses_gpu = sizes.has_gpu and device != "cpu"
    windowing = Windowing.for_model(spec, **settings, device="cpu")
    return replace(windowing, device="cuda") if uses_gpu else windowing
