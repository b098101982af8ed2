"""Recipe -> Plan: blocks, items, bytes and memory; refuses what cannot work."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from bigmap import grid, simulate
from bigmap.area import lonlat_of, read_area
from bigmap.blocks import BlockJob, name_block
from bigmap.catalog import Audit, Catalogue, find_items
from bigmap.catalog.hrefs import is_url, path_of
from bigmap.clusters.sizes import ClusterSizes, size_cluster
from bigmap.config import (
    UTM,
    FilesSource,
    MaskConfig,
    ModelConfig,
    Recipe,
    SimulatedSource,
)
from bigmap.cube import Access
from bigmap.cube.loaders import bounds_on, epsg_of
from bigmap.errors import CatalogError, EmptyAreaError, PlanError, RecipeError
from bigmap.grid import ROI, Area, Lattice
from bigmap.inference import Engine, Windowing, optimise
from bigmap.items import AssetRow, ItemTable
from bigmap.models import (
    LEGENDS,
    ClassEntry,
    LayerSpec,
    MapModel,
    ModelChoice,
    ModelSpec,
    find_model,
    refuse_random,
)
from bigmap.models.dry_pass import PassSize, count_pass_bytes
from bigmap.models.layers import count_weight_bytes
from bigmap.quality import DateRule, MaskRule
from bigmap.store import LayerTemplate, MapTemplate
from bigmap.worker_memory import (
    APPLYING_BYTES,
    PREPARED_BYTES,
    SAMPLING_BYTES,
    CanvasLoad,
    CellLoad,
    count_peak_bytes,
)

CONTEXT_CELLS = 3
"""Items are searched this many cells beyond the area: cells choose their dates as wholes, and
windows at the edge see their neighbours."""
MOST_BLOCKS = 1_000_000
"""Ten times a map of Europe."""
WEIGHT_COPIES = 2
"""While a worker builds a model: as it is trained, and as it predicts."""
PLANS = 6
"""Of resampling, kept for the grids of the files that cells in hand lie in."""
COUNTED_BLOCKS = 64
"""Whose cells and windows are counted one by one; the others read as much for each pixel."""
REMOTE_READS = 16
LOCAL_READS = 2
CACHE_LIMIT = "source.cache_gb"
LOCAL_HOST = "://"
"""Of :meth:`bigmap.items.ItemTable.count_hosts`."""


_NOT_ADDED = ("dates", "memory_gb")


@dataclass(frozen=True)
class _Reads:
    """Pixels for each pixel of blocks, at the resolution of the input."""

    bands: float
    masks: float
    windows: float
    """Those that the model sees, halos included."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take, before anything is spent."""

    area_km2: float
    blocks: int
    items: int
    dates: int
    read_gb: float
    """Uncompressed size of what is read at native resolution, windows' overlap included."""
    written_gb: float
    """Uncompressed size of the map without overviews."""
    memory_gb: float
    """Peak memory of one worker."""
    samples: float
    """Values of bands and masks to read, each at its own resolution."""
    output_px: float
    date_px: float
    """Input pixels that the model sees, halos included, counted once for each date."""
    block_km2: float
    """Area of the blocks, what lies outside the area included."""

    @classmethod
    def add(cls, estimates: Sequence[Estimate]) -> Estimate:
        """Add up the estimates of the parts of a map; memory and dates are those of the most.

        Dates that parts do not share are counted by whoever knows their items.
        """
        sums = {
            field.name: sum(getattr(each, field.name) for each in estimates)
            for field in fields(cls)
        }
        most = {name: max(getattr(each, name) for each in estimates) for name in _NOT_ADDED}
        return cls(**sums | most)


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know, derived from a recipe and its catalogue."""

    recipe: Recipe
    lattice: Lattice
    area: Area
    extent: ROI
    """In global pixel indices, snapped to whole cells and shards."""
    blocks: tuple[ROI, ...]
    """Blocks with pixels of the area, in row-major order."""
    catalogue: Catalogue
    model: MapModel
    windowing: Windowing
    layers: tuple[LayerSpec, ...]
    sizes: ClusterSizes
    """Of the recipe's cluster."""
    scenes: simulate.SceneStock | None = None
    """Scenes that a simulated source needs, and those that are there; None where none are read."""

    def name(self, block: ROI) -> str:
        """Return the name of a block."""
        return name_block(self.lattice, block)

    def rows_of(self, block: ROI) -> ItemTable:
        """Return the items that may have pixels in a block or in the context it reads."""
        return self.catalogue.rows.take(self.indices_of(block))

    def count_km2(self, block: ROI) -> float:
        """Return the area of a block's pixels of the AOI, in square kilometres."""
        pixels = grid.area_mask(self.area, self.lattice, block).sum()
        return float(pixels) * self.lattice.output_gsd_m**2 / 1e6

    def context_of(self, block: ROI) -> ROI:
        """Return a block with the cells around it, whose dates blending chooses too."""
        return grid.grow(block, self.lattice.cell_px)

    def indices_of(self, block: ROI) -> npt.NDArray[np.intp]:
        """Return the indices of :meth:`rows_of`, rising."""
        context = grid.grow(self.context_of(block), self.halo_px)
        tree, indices = self._footprints
        found = tree.query(shapely.box(*self.lattice.bounds(context)))
        chosen = [indices[place] for place in found]
        return np.sort(np.concatenate([np.zeros(0, np.intp), *chosen]))

    @property
    def halo_px(self) -> int:
        """Context read around windows, in input pixels."""
        return self.windowing.halo_px(self.model.spec, self.lattice)

    @cached_property
    def _footprints(self) -> tuple[shapely.STRtree, list[npt.NDArray[np.intp]]]:
        """Return a tree of the places where items lie, and the items of each place."""
        places, crs = self.catalogue.rows.places(), self.lattice.crs
        boxes = [shapely.box(*bounds_on(crs, epsg, bounds)) for epsg, bounds, _ in places]
        return shapely.STRtree(boxes), [indices for _, _, indices in places]

    def fingerprint(self) -> dict[str, Any]:
        """Return what a resumed run must find unchanged beside the recipe's own words."""
        parts = b"".join(shapely.to_wkb(part) for part in self.area.parts)
        return {
            "blocks": len(self.blocks),
            "extent": [[part.start, part.stop] for part in self.extent],
            "area": hashlib.sha256(parts).hexdigest(),
            "weights": self.model.spec.weights,
            "versions": list_versions(),
        }

    def check_rendered(self) -> None:
        """Refuse to read simulated scenes that are not there.

        Raises
        ------
        PlanError
            If some were not when this plan was made.
        """
        if self.scenes is not None and self.scenes.lacking:
            raise PlanError(
                f"source: {self.scenes.lacking} of {len(self.scenes.scenes)} simulated scenes are "
                "not rendered; call bigmap.prepare_source(recipe) before bigmap.plan(recipe)"
            )

    def job(self, run_folder: str, lease_owner: str | None) -> BlockJob:
        """Return what all blocks of a run have in common; see :meth:`check_rendered`."""
        self.check_rendered()
        recipe = self.recipe
        return BlockJob(
            output=recipe.output.path,
            run_folder=run_folder,
            lease_owner=lease_owner,
            lattice=self.lattice,
            extent=self.extent,
            area=self.area,
            model=replace(model_choice(recipe.model), pinned=self.model.spec.weights),
            layers=tuple(layer.name for layer in self.layers),
            windowing=self.windowing,
            mask=mask_rule(recipe.source.mask),
            dates=DateRule(**recipe.dates.model_dump()),
            resampling=recipe.reading.resampling,
            loader=recipe.reading.loader,
            on_error=recipe.reading.on_error,
            access=Access(**recipe.source.access.model_dump()),
            read_threads=self._read_threads(),
            # Simulated scenes that the cache has lost are written again, to the same bytes.
            watch_versions=not isinstance(recipe.source, SimulatedSource),
        )

    @cached_property
    def is_remote(self) -> bool:
        """Tell whether scenes, or some of their files, lie behind a network."""
        return bool(self.catalogue.rows.count_hosts().keys() - {LOCAL_HOST})

    def _read_threads(self) -> int:
        """Return how many files a block reads at once: remote ones are waited for, local not."""
        return REMOTE_READS if self.is_remote else LOCAL_READS

    def template(self) -> MapTemplate:
        """Return the shape and the metadata of the map."""
        return MapTemplate(
            lattice=self.lattice,
            extent=self.extent,
            layers=tuple(
                LayerTemplate(
                    layer.name,
                    layer.dtype,
                    layer.nodata,
                    layer.describe(self.model.spec.legend),
                    layer.channels,
                )
                for layer in self.layers
            ),
            overviews=self.recipe.output.overviews,
            attributes=self._attributes(),
        )

    def _attributes(self) -> dict[str, Any]:
        return {
            "Conventions": "CF-1.11",
            "title": self.recipe.title or self.recipe.name,
            "source": "modified Copernicus Sentinel-2 data"
            if not isinstance(self.recipe.source, SimulatedSource)
            else "simulated scenes, not observations",
            # Accounts and addresses of a centre are nobody's business, and decide no value.
            "bigmap:recipe": self.recipe.model_dump(mode="json", exclude={"cluster"}),
            "bigmap:model": {
                "name": self.model.spec.name,
                "title": self.model.spec.title,
                "bands": list(self.model.spec.bands),
                "weights": self.model.spec.weights,
                "notice": self.model.spec.notice,
            },
            "bigmap:versions": list_versions(),
            # The map is snapped outwards to whole shards.
            "bigmap:area_bbox": list(self.area.bounds),
        }

    def estimate(self) -> Estimate:
        """Estimate what the run will take."""
        lattice, spec, per_px = self.lattice, self.model.spec, self._count_reads()
        pixel_m = {name: abs(a.transform[0]) for name, a in self.catalogue.rows[0].assets.items()}
        native = sum((lattice.gsd_m / pixel_m[band]) ** 2 for band in spec.bands)
        mask_m = pixel_m.get(mask_rule(self.recipe.source.mask).asset or "", math.inf)
        rows, cols = np.array([grid.shape_of(block) for block in self.blocks]).T
        input_px = float((rows * cols).sum())
        per_block = self._count_items(np.array(lattice.bounds_of(self.blocks)), whole=False)
        date_px = float((rows * cols * np.minimum(per_block, self.recipe.dates.max_per_cell)).sum())
        item_px = float((rows * cols * per_block).sum())
        samples = date_px * per_px.bands * native
        masked = item_px * per_px.masks * (lattice.gsd_m / mask_m) ** 2
        output_px = input_px * lattice.upscale**2
        return Estimate(
            area_km2=self.area.area_km2,
            blocks=len(self.blocks),
            items=len(self.catalogue.rows),
            dates=self._dates()[0],
            read_gb=(2 * samples + masked) / 1e9,
            written_gb=output_px * self._layer_bytes() / 1e9,
            memory_gb=self.memory_gb(),
            samples=samples + masked,
            output_px=output_px,
            date_px=date_px * per_px.windows,
            block_km2=input_px * lattice.gsd_m**2 / 1e6,
        )

    def _count_reads(self) -> _Reads:
        """Count what blocks read and predict: neighbours too where these blend."""
        engine = Engine(self.model, self.lattice, self.windowing, self.layers)
        blocks = self.blocks[:: math.ceil(len(self.blocks) / COUNTED_BLOCKS)]
        bands = masks = windows = 0
        for block in blocks:
            for cell, cores, window in engine.list_reads(block, is_wanted=self._is_wanted):
                bands += math.prod(grid.shape_of(window))
                masks += math.prod(grid.shape_of(grid.hull([cell, window])))
                windows += len(cores) * (self.lattice.core_px + 2 * self.halo_px) ** 2
        input_px = sum(math.prod(grid.shape_of(block)) for block in blocks)
        return _Reads(bands / input_px, masks / input_px, windows / input_px)

    def _is_wanted(self, roi: ROI) -> bool:
        return self.area.intersects(self.lattice.bounds(roi))

    def _dates(self) -> tuple[int, int]:
        """Return the number of dates, and how many of them a cell uses at most."""
        dates = len(np.unique(self.catalogue.rows.column("solar_day")))
        return dates, min(self.recipe.dates.max_per_cell, max(dates, 1))

    def _count_items(self, boxes: npt.NDArray[np.float64], *, whole: bool) -> npt.NDArray[np.intp]:
        """Count the items that meet boxes, (n, 4), or only their middles."""
        left, bottom, right, top = boxes.T
        middles = shapely.points((left + right) / 2, (bottom + top) / 2)
        tree, indices = self._footprints
        box, place = tree.query(shapely.box(*boxes.T) if whole else middles, "intersects")
        lengths = np.array([len(each) for each in indices], dtype=float)
        counts = np.bincount(box, weights=lengths[place], minlength=len(boxes))
        return counts.astype(np.intp)

    def most_items(self) -> int:
        """Return how many items a cell reads the masks of, at most."""
        if not len(self.catalogue.rows):
            return 0
        margin_m = self.halo_px * self.lattice.gsd_m
        boxes = self.lattice.bounds_of(self.blocks) + margin_m * np.array((-1, -1, 1, 1))
        return int(self._count_items(boxes, whole=True).max(initial=0))

    def _layer_bytes(self) -> int:
        """Return the size of an output pixel, all layers together."""
        return sum(
            np.dtype(layer.dtype).itemsize * max(1, len(layer.channels)) for layer in self.layers
        )

    def memory_gb(self) -> float:
        """Estimate a worker's peak memory: each block in hand, and one that predicts."""
        lattice, spec, (days, dates) = self.lattice, self.model.spec, self._dates()
        masks = self.most_items()
        cell = CellLoad(
            pixels=(lattice.cell_px + 2 * self.halo_px) ** 2,
            bands=len(spec.bands),
            dates=dates,
            items=dates * math.ceil(masks / max(days, 1)),
            masks=masks,
        )
        canvas = CanvasLoad(
            (lattice.block_px * lattice.upscale) ** 2,
            spec,
            self.layers,
            blends=self.windowing.overlap == "blend",
        )
        blocks = self.sizes.blocks
        shared = WEIGHT_COPIES * count_weight_bytes(self.model) + self._resampling_bytes(cell)
        peak = count_peak_bytes(
            cell, canvas, pass_bytes=self._pass_bytes(dates), shared_bytes=shared, blocks=blocks
        )
        return peak / 1e9

    def _pass_bytes(self, dates: int) -> float:
        """Return what the model takes for a batch of windows; on a GPU it is the GPU's."""
        if self.windowing.device == "cuda":
            return 0.0
        lattice = self.lattice
        size = PassSize(
            windows=min(self.windowing.batch_windows, (lattice.cell_px // lattice.core_px) ** 2),
            dates=dates,
            side_px=lattice.core_px + 2 * self.halo_px,
            precision=self.windowing.precision,
        )
        samples = size.windows * dates * len(self.model.spec.bands) * size.side_px**2
        return max(count_pass_bytes(optimise(self.model), size), PREPARED_BYTES * samples)

    def _resampling_bytes(self, cell: CellLoad) -> float:
        """Return what plans of resampling take, and threads that apply them."""
        method = SAMPLING_BYTES[self.recipe.reading.resampling]
        pixels_m = [abs(asset.transform[0]) for asset in self._first_assets()]
        # Finer files are read with all they hold below a cell.
        finer = max([1.0] + [(self.lattice.gsd_m / pixel_m) ** 2 for pixel_m in pixels_m])
        threads = self._read_threads() * self.sizes.blocks
        return cell.pixels * (PLANS * method + threads * (APPLYING_BYTES + 8 * (finer - 1)))

    def _first_assets(self) -> list[AssetRow]:
        return [asset for row in self.catalogue.rows[:1] for asset in row.assets.values()]


def list_versions() -> dict[str, str]:
    """Return the versions of bigmap and of the libraries that touch pixels."""
    packages = ("bigmap", "torch", "rasterio", "stackstac", "odc-stac", "zarr", "xarray")
    return {name: importlib.metadata.version(name) for name in packages}


def make_plan(
    recipe: Recipe,
    *,
    catalogue: Catalogue | None = None,
    needs_weights: bool = False,
) -> Plan:
    """Derive the plan of a run; nothing is written.

    Parameters
    ----------
    recipe
        The recipe. Scenes of a simulated source that are not rendered are planned by their
        orbits, as if they had no clouds to go by.
    catalogue
        The items of a run that is resumed; otherwise the source is searched.
    needs_weights
        Refuse a network without weights.

    Raises
    ------
    BigmapError
        If the model, the area, the grid, the items or the memory do not fit together; the
        message names the field.
    """
    model = model_choice(recipe.model).build()
    if needs_weights:
        refuse_random(model.spec, advise_weights(recipe))
    lattice = make_lattice(recipe, model)
    sizes = size_cluster(recipe.cluster)
    windowing = choose_windowing(recipe, model.spec, sizes)
    area = read_area(crs=recipe.grid.crs, **recipe.area.model_dump())
    extent = lattice.snap(area.bounds, lattice.extent_step_px)
    _check_size(extent, lattice)
    blocks = _list_blocks(lattice, extent, area)
    layers = _choose_layers(recipe, model)
    nothing = Catalogue(ItemTable.of(()), Audit(0, 0, (), (), (), ()))
    draft = Plan(recipe, lattice, area, extent, blocks, nothing, model, windowing, layers, sizes)
    _check_pixels(draft)
    check_inputs(recipe)
    _check_memory(draft)
    # Also for a run that goes on: the cache may have lost scenes since.
    draft = replace(draft, scenes=_list_scenes(draft))
    plan = replace(draft, catalogue=catalogue or _find_items(draft))
    _check_coverage(plan)
    check_scenes(plan)
    _check_memory(plan)
    return plan


def _find_items(draft: Plan) -> Catalogue:
    """Search the source around the area."""
    recipe, lattice, source = draft.recipe, draft.lattice, draft.recipe.source
    outline = shapely.intersection_all(list(draft.area.parts))
    margin_m = CONTEXT_CELLS * lattice.cell_px * lattice.gsd_m
    around = outline.simplify(margin_m / 20).buffer(margin_m, quad_segs=4)
    items = None
    if isinstance(source, SimulatedSource):
        assert draft.scenes is not None
        source, items = _forecast_items(source, draft.scenes)
    return find_items(
        source,
        bands=draft.model.spec.bands,
        mask_asset=mask_rule(recipe.source.mask).asset,
        geometry_lonlat=lonlat_of(around, recipe.grid.crs),
        items=items,
    )


def _forecast_items(
    source: SimulatedSource, scenes: simulate.SceneStock
) -> tuple[FilesSource, list[tuple[Any, str]]]:
    """Turn a simulated source into the file that lists its items, and what that holds or will."""
    (request,) = scenes.requests
    file = str(simulate.locate_items(request, scenes.cache))
    common = source.model_dump(exclude={"kind", "seed", "scene_px", "cache", "cache_gb"})
    items = simulate.forecast_items(request, scenes.cache)
    return FilesSource(kind="files", files=(file,), **common), [(item, file) for item in items]


def _list_blocks(lattice: Lattice, extent: ROI, area: Area) -> tuple[ROI, ...]:
    """Return the blocks with pixels of the area, in row-major order."""
    blocks = list(lattice.blocks(extent))
    return tuple(compress(blocks, area.meets(lattice.bounds_of(blocks))))


def make_lattice(recipe: Recipe, model: MapModel) -> Lattice:
    """Join the recipe's grid with the model's upscale.

    Raises
    ------
    RecipeError
        If blocks are not whole shards, or the CRS or the model does not fit the grid.
    """
    settings = recipe.grid
    if settings.crs == UTM:
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
        crs=settings.crs,
        gsd_m=settings.gsd_m,
        core_px=settings.core_px,
        cell_px=settings.cell_px,
        block_px=settings.block_px,
        upscale=upscale,
        shard_px=settings.shard_px,
        chunk_px=settings.chunk_px,
        anchor_m=settings.anchor_m,
    )
    _check_dates(recipe, model)
    if settings.core_px % multiple:
        raise RecipeError(
            f"grid.core_px: {settings.core_px} is not a multiple of {multiple}, which "
            f"{model.spec.name} needs"
        )
    if settings.block_px % lattice.extent_step_px:
        raise RecipeError(
            f"grid.block_px: {settings.block_px} is not a multiple of {lattice.extent_step_px}, "
            "the least size of whole cells and whole shards"
        )
    if recipe.reading.loader == "stackstac":
        try:
            epsg_of(settings.crs)
        except ValueError as error:
            raise RecipeError(f"grid.crs: {error}; set reading.loader to odc-stac") from None
    return lattice


def _check_dates(recipe: Recipe, model: MapModel) -> None:
    most, asked = model.spec.max_dates, recipe.dates.max_per_cell
    if most is not None and asked > most:
        raise RecipeError(
            f"dates.max_per_cell: {asked} is more than the {most} that {model.spec.name} is built "
            f"for; lower it, or raise model.options.max_dates"
        )


def mask_rule(mask: MaskConfig) -> MaskRule:
    """Turn the recipe's mask setting into the rule that readers apply."""
    fields = mask.model_dump()
    clear = fields.pop("clear_value", None)
    if clear is not None:
        fields["clear_values"] = (clear,)
    return MaskRule(**fields)


def use_trained_weights(recipe: Recipe) -> Recipe:
    """Let weights in ``training.weights`` count where ``model.weights`` names none.

    Everything that maps or scores by a recipe goes through this; training itself does not.
    """
    model, training = recipe.model, recipe.training
    if training is None or model.weights is not None or not Path(training.weights).is_file():
        return recipe
    if not find_model(model.name).has_weights:
        return recipe
    return recipe.model_copy(
        update={"model": model.model_copy(update={"weights": training.weights})}
    )


def advise_weights(recipe: Recipe) -> str:
    """Tell where a recipe's model may get weights from."""
    trained = "bigmap train writes some"
    if recipe.training is not None:
        trained = f"{recipe.training.weights} is not there before bigmap train has written it"
    return (
        f"name some in model.weights ({trained}), or add --allow-random-weights (in Python "
        "allow_random_weights=True)"
    )


def model_choice(model: ModelConfig) -> ModelChoice:
    """Turn the recipe's model setting into what builds it.

    Raises
    ------
    RecipeError
        If it names a legend that does not exist.
    """
    legend = model.legend
    if isinstance(legend, str):
        if legend not in LEGENDS:
            raise RecipeError(
                f"model.legend: {legend!r} is unknown; there are {', '.join(LEGENDS)}, or list "
                "classes with value, name and colour"
            )
        classes = LEGENDS[legend]
    else:
        classes = tuple(ClassEntry(**entry.model_dump()) for entry in legend or ())
    return ModelChoice(
        model.name,
        options=tuple(sorted(model.options.items())),
        bands=model.bands,
        legend=classes or None,
        weights=model.weights,
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


def request_scenes(recipe: Recipe, *, flavour: str = "earth-search") -> simulate.SceneRequest:
    """Return the simulated scenes that a recipe would be mapped from, whatever its source is.

    Parameters
    ----------
    flavour
        Catalogue whose ways the items follow, of :data:`bigmap.simulate.FLAVOURS`.

    Raises
    ------
    BigmapError
        If the model, the area and the grid do not fit together.
    """
    model = model_choice(recipe.model).build()
    area = read_area(crs=recipe.grid.crs, **recipe.area.model_dump())
    return replace(
        _request_scenes(recipe, make_lattice(recipe, model), model, area), flavour=flavour
    )


def _request_scenes(
    recipe: Recipe, lattice: Lattice, model: MapModel, area: Area
) -> simulate.SceneRequest:
    source = recipe.source
    default = SimulatedSource(kind="simulated", start=source.start, end=source.end)
    simulated = source if isinstance(source, SimulatedSource) else default
    windowing = choose_windowing(recipe, model.spec, size_cluster(recipe.cluster))
    # Cells choose their dates as wholes, and blending sees the cells around them too.
    context_px = windowing.halo_px(model.spec, lattice)
    context_px += lattice.cell_px if windowing.overlap == "blend" else 0
    cells = grid.grow(lattice.snap(area.bounds, lattice.cell_px), context_px)
    return simulate.SceneRequest(
        crs=recipe.grid.crs,
        bounds=lattice.bounds(cells),
        start=source.start,
        end=source.end,
        bands=model.spec.bands,
        seed=simulated.seed,
        scene_px=simulated.scene_px,
    )


def _list_scenes(plan: Plan) -> simulate.SceneStock | None:
    """List what a simulated source needs and what of it is there; None for other sources.

    Raises
    ------
    PlanError
        If nothing was acquired, or the cache cannot hold it.
    """
    source = plan.recipe.source
    if not isinstance(source, SimulatedSource):
        return None
    request = _request_scenes(plan.recipe, plan.lattice, plan.model, plan.area)
    max_bytes = int(source.cache_gb * 1e9)
    simulate.check_size(request, max_bytes, limit=CACHE_LIMIT)
    return simulate.SceneStock.of(request, simulated_cache(source), max_bytes=max_bytes)


def simulated_cache(source: SimulatedSource) -> Path:
    """Return the folder of simulated scenes."""
    if source.cache is not None:
        return Path(source.cache)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bigmap" / "scenes"


def _check_pixels(plan: Plan) -> None:
    """Refuse an area so small that no pixel has its centre in it."""
    # The first block nearly always holds one; only specks are looked at whole.
    if not any(plan.count_km2(block) for block in plan.blocks):
        raise EmptyAreaError(
            "area: holds no pixel of the grid, since no centre of a pixel of "
            f"{plan.lattice.output_gsd_m:g} m lies in it; give a larger area, or set area.buffer_m"
        )


def _check_coverage(plan: Plan) -> None:
    if not plan.most_items():
        raise CatalogError(
            f"area: none of the {len(plan.catalogue.rows)} items found meets the area; check "
            "area, grid.crs and source"
        )


def _check_size(extent: ROI, lattice: Lattice) -> None:
    """Refuse what would take hours to list before anything is found out."""
    blocks = math.prod(math.ceil(side / lattice.block_px) for side in grid.shape_of(extent))
    if blocks > MOST_BLOCKS:
        raise PlanError(
            f"area: needs {blocks:,} blocks, more than {MOST_BLOCKS:,}; raise grid.block_px or "
            "grid.gsd_m, or map it in parts"
        )


def check_inputs(recipe: Recipe) -> None:
    """Refuse an output among the inputs, where --overwrite would delete what is read."""
    output, source = recipe.output.path, recipe.source
    if is_url(output):
        return
    target = Path(output).resolve()
    if isinstance(source, SimulatedSource):
        cache = simulated_cache(source).resolve()
        if target in cache.parents or target.is_relative_to(cache):
            raise RecipeError(
                f"output.path: {output} lies among the scenes in {cache}; choose another place"
            )
    for file in _list_inputs(recipe):
        if file.is_relative_to(target):
            raise RecipeError(f"output.path: {output} holds the input {file}; choose another place")


def _list_inputs(recipe: Recipe) -> list[Path]:
    """Return the files of this machine that a recipe names, without links."""
    places = [*getattr(recipe.source, "files", ()), recipe.area.file, recipe.model.weights]
    paths = [path_of(place) for place in places if place]
    return [Path(path).resolve() for path in paths if path]


def check_scenes(plan: Plan) -> None:
    """Refuse an output that holds a file of a scene, or lies in the folder of one scene.

    Elsewhere it may lie beside them: in the folder of all scenes, or where the list of items is.
    """
    output = plan.recipe.output.path
    if is_url(output):
        return
    target, spelt = Path(output).resolve(), Path(output).absolute()
    rows = [row for place in {target, spelt} for row in plan.catalogue.rows.find_around(place)]
    folders: dict[Path, set[str]] = {}
    for row in rows:
        for asset in row.assets.values():
            if not is_url(asset.href):
                folders.setdefault(Path(asset.href).parent, set()).add(row.id)
    shared = {file.parent for file in _list_inputs(plan.recipe)}
    for folder, items in folders.items():
        real = folder.resolve()
        if real.is_relative_to(target):
            raise RecipeError(f"output.path: {output} holds the scenes in {real}; choose another")
        if target.is_relative_to(real) and len(items) == 1 and real not in shared:
            raise RecipeError(
                f"output.path: {output} lies among the files of {min(items)} in {real}; choose "
                "another place"
            )


def _check_memory(plan: Plan) -> None:
    need_gb, limit_gb = plan.memory_gb(), plan.sizes.memory_gb
    if need_gb > limit_gb:
        raise PlanError(
            f"cluster: a worker needs about {need_gb:.1f} GB but has {limit_gb:.1f} GB; lower "
            "grid.block_px, dates.max_per_cell, inference.batch_windows or "
            "cluster.blocks_per_worker, or use fewer workers"
        )


def choose_windowing(recipe: Recipe, spec: ModelSpec, sizes: ClusterSizes) -> Windowing:
    """Settle how windows are run, on the device that the cluster's workers have.

    Raises
    ------
    RecipeError
        If a GPU is asked for on a cluster without any.
    """
    settings = recipe.inference.model_dump()
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
