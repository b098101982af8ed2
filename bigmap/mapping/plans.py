"""What a run needs to know, before anything is spent: a plan of one part for each grid.

A map has one grid, or one for each UTM zone. Each part has a lattice, blocks and items of its own,
and its store and its notes lie in the group and in the folder of its name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from bigmap import grid, simulate
from bigmap.clusters.sizes import ClusterSizes
from bigmap.config import Recipe
from bigmap.config.sources import SimulatedSource
from bigmap.errors import PlanError, RecipeError
from bigmap.grid import ROI, Area, Lattice
from bigmap.mapping.blocks import BlockJob, name_block
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.store.template import LayerTemplate, MapTemplate
from bigmap.mapping.windows import Windowing
from bigmap.models import LayerSpec, MapModel
from bigmap.scenes.catalog import Catalogue
from bigmap.scenes.cube.loaders import bounds_on
from bigmap.scenes.cube.reader import SceneReading, mask_rule
from bigmap.scenes.items import ItemTable
from bigmap.zones import UtmZone

REMOTE_READS = 16
LOCAL_READS = 2
LOCAL_HOST = "://"
"""Of :meth:`bigmap.scenes.items.ItemTable.count_hosts`."""


@dataclass(frozen=True)
class Part:
    """Everything a run needs to know of one grid, derived from a recipe and its catalogue."""

    recipe: Recipe
    purpose: Purpose
    zone: UtmZone | None
    """None where the map has one grid."""
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

    @property
    def name(self) -> str:
        """The name of the group, such as ``utm31n``; empty where the map has one grid."""
        return self.zone.group if self.zone else ""

    @property
    def store(self) -> str:
        """Path or URL of the group."""
        return f"{self.purpose.path}/{self.name}" if self.name else self.purpose.path

    def name_block(self, block: ROI) -> str:
        """Return the name of a block."""
        return name_block(self.lattice, block)

    def rows_of(self, block: ROI) -> ItemTable:
        """Return the items that may have pixels in a block or in the context it reads."""
        return self.catalogue.rows.take(self.indices_of(block))

    def count_km2(self, block: ROI) -> float:
        """Return the area of a block's pixels of the AOI, in square kilometres."""
        pixels = grid.area_mask(self.area, self.lattice, block).sum()
        return float(pixels) * self.lattice.output_gsd_m**2 / 1e6

    def is_wanted(self, roi: ROI) -> bool:
        """Tell whether the area meets a region of the lattice."""
        return self.area.intersects(self.lattice.bounds(roi))

    def context_of(self, block: ROI) -> ROI:
        """Return a block with the cells around it, whose dates blending chooses too."""
        return grid.grow(block, self.lattice.cell_px)

    def indices_of(self, block: ROI) -> npt.NDArray[np.intp]:
        """Return the indices of :meth:`rows_of`, rising."""
        context = grid.grow(self.context_of(block), self.halo_px)
        tree, indices = self.footprints
        found = tree.query(shapely.box(*self.lattice.bounds(context)))
        chosen = [indices[place] for place in found]
        return np.sort(np.concatenate([np.zeros(0, np.intp), *chosen]))

    @property
    def halo_px(self) -> int:
        """Context read around windows, in input pixels."""
        return self.windowing.halo_px(self.model.spec, self.lattice)

    @cached_property
    def footprints(self) -> tuple[shapely.STRtree, list[npt.NDArray[np.intp]]]:
        """A tree of the places where items lie, and the items of each place."""
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
            "windows": [self.lattice.core_px, self.lattice.shift_px, self.halo_px],
            "versions": list_versions(),
        }

    @cached_property
    def is_remote(self) -> bool:
        """Tell whether scenes, or some of their files, lie behind a network."""
        return bool(self.catalogue.rows.count_hosts().keys() - {LOCAL_HOST})

    @property
    def reading(self) -> SceneReading:
        """How scenes are read."""
        recipe = self.recipe
        return SceneReading(
            lattice=self.lattice,
            bands=self.model.spec.bands,
            mask=mask_rule(recipe.source.mask),
            resampling=recipe.reading.resampling,
            loader=recipe.reading.loader,
            on_error=recipe.reading.on_error,
            access=recipe.source.access,
            # Remote files are waited for, local ones are not.
            threads=REMOTE_READS if self.is_remote else LOCAL_READS,
            # Simulated scenes that the cache has lost are written again, to the same bytes.
            watch_versions=not isinstance(recipe.source, SimulatedSource),
        )

    def job(self, run_folder: str, lease_owner: str | None) -> BlockJob:
        """Return what all blocks have in common; see :meth:`Plan.check_rendered`."""
        return BlockJob(
            output=self.store,
            run_folder=run_folder,
            lease_owner=lease_owner,
            reading=self.reading,
            extent=self.extent,
            area=self.area,
            model=replace(self.purpose.choose_model(self.recipe), pinned=self.model.spec.weights),
            layers=tuple(layer.name for layer in self.layers),
            windowing=self.windowing,
            dates=self.purpose.dates,
        )

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
            # The map is snapped outwards to whole shards.
            attributes=self.attributes() | {"bigmap:area_bbox": list(self.area.bounds)},
        )

    def attributes(self) -> dict[str, Any]:
        """Return what the metadata of all parts say."""
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
        }


@dataclass(frozen=True)
class Plan:
    """The plan of a map, or of chips."""

    recipe: Recipe
    purpose: Purpose
    parts: tuple[Part, ...]
    """One, or one for each UTM zone from west to east."""

    @property
    def output(self) -> str:
        """Path or URL of what is made."""
        return self.purpose.path

    @property
    def only(self) -> Part:
        """The part of a plan with one grid.

        Raises
        ------
        RecipeError
            If it has several.
        """
        (part, *others) = self.parts
        if others or part.zone is not None:
            raise RecipeError(
                "grid.crs: utm stands for many grids, and one is needed here; give one zone, such "
                "as EPSG:32631"
            )
        return part

    @property
    def model(self) -> MapModel:
        """The model, which all parts share."""
        return self.parts[0].model

    @property
    def is_remote(self) -> bool:
        """Tell whether scenes lie behind a network."""
        return any(part.is_remote for part in self.parts)

    @cached_property
    def scenes(self) -> simulate.SceneStock | None:
        """Scenes that a simulated source needs in all parts; see :attr:`Part.scenes`."""
        stocks = [part.scenes for part in self.parts if part.scenes is not None]
        return simulate.SceneStock.join(stocks) if stocks else None

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


def list_versions() -> dict[str, str]:
    """Return the versions of bigmap and of the libraries that touch pixels."""
    packages = ("bigmap", "torch", "rasterio", "stackstac", "odc-stac", "zarr", "xarray")
    return {name: importlib.metadata.version(name) for name in packages}
