"""The ground at 2.5 m: parcels, woods, water, roads and settlements as functions of place.

Roads run along the cells of a lattice of 2.4 km, farm tracks along cells of 620 m. Within such
a cell, parcels are bricks of a rotated grid: strips of equal width cut at unequal places, as
land consolidation leaves them; at the cell's border they are cut by the track. Woods, heath,
rock, lakes and streams follow smooth noise and ignore parcels. All sizes are our assumptions:
half of the crop parcels measure 0.2 to 0.8 ha (in one square of 8 km of seed 1), as in regions
of small farms. Woods and other nature are divided into stands of some 3 ha.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigmap.draws import F64, U64, derive_seed, hash_ints, to_uniform
from bigmap.simulate.covers import N_COVERS, Cover
from bigmap.simulate.noise import F32, I64
from bigmap.simulate.patch import Patch, refine
from bigmap.simulate.relief import Relief, shape_relief
from bigmap.simulate.settlements import Lots, build_lots, sample_urbanity
from bigmap.simulate.shadows import measure_height
from bigmap.simulate.texture import Texture, sample_texture
from bigmap.simulate.units import Units, draw_fields, draw_units
from bigmap.simulate.voronoi import Cells, find_cells

U8 = npt.NDArray[np.uint8]

ROAD_SPACING_M = 2400.0
BLOCK_SPACING_M = 620.0
STAND_SPACING_M = 180.0
_BRICKS = 64
"""Bricks per cell and axis that have a number of their own."""
_NATURE = 32
"""Covers per cell that have a number of their own."""


@dataclass(frozen=True)
class Landscape:
    """The ground of one patch."""

    patch: Patch
    unit: I64
    """Index into ``units`` of each pixel, (y, x) at 2.5 m."""
    units: Units
    """What each parcel, stand or surface is."""
    texture: Texture
    """Variation within units."""
    height: U8
    """Height of trees and buildings, uint8 (y, x) at 2.5 m, in quarters of a metre."""
    building: npt.NDArray[np.uint32]
    """Number of the building on each pixel, 0 where there is none, (y, x) at 2.5 m."""
    relief: Relief
    """Elevation and what follows from it, at the nodes."""

    @property
    def cover(self) -> U8:
        """Cover of each pixel, uint8 (y, x) at 2.5 m; see :class:`Cover`."""
        return self.units.cover[self.unit]


@dataclass(frozen=True)
class _Bricks:
    """Where each pixel lies in the rotated grid of its cell."""

    u: F32
    v: F32
    edge_m: F32
    key: I64


def build_landscape(seed: int, patch: Patch) -> Landscape:
    """Build the ground of a patch.

    Parameters
    ----------
    seed
        Seed of the world.
    patch
        Where; the result for a pixel is the same in every patch that holds it.
    """
    nodes = patch.nodes
    fine = refine(nodes[0]), refine(nodes[1])
    relief = shape_relief(derive_seed(seed, "relief"), *nodes)
    bend_x, bend_y = (refine(part) for part in relief.bend)
    bent = fine[0] + bend_x, fine[1] + bend_y
    bent_nodes = nodes[0] + relief.bend[0], nodes[1] + relief.bend[1]
    blocks = find_cells(derive_seed(seed, "blocks"), bent_nodes, bent, spacing_m=BLOCK_SPACING_M)
    roads = find_cells(derive_seed(seed, "roads"), bent_nodes, bent, spacing_m=ROAD_SPACING_M)
    stands = find_cells(derive_seed(seed, "stands"), bent_nodes, bent, spacing_m=STAND_SPACING_M)
    fields = draw_fields(derive_seed(seed, "fields"), blocks)
    bricks = _lay_bricks(bent, blocks, fields.angle, fields.width_m, fields.length_m)
    urban = refine(sample_urbanity(derive_seed(seed, "towns"), *nodes).astype(np.float32))
    lots = build_lots(
        derive_seed(seed, "lots"), blocks, bricks.u, bricks.v, urban > 0, fields.has_farm
    )
    cover = _overlay(blocks, roads, stands, bricks, relief, lots, fields.hedge_m)
    unit, units = _number_units(seed, blocks, stands, bricks.key, cover)
    texture = sample_texture(derive_seed(seed, "texture"), *fine, blocks, units.cover[unit])
    _plant_rows(texture.density, bricks.u, unit, units)
    height = measure_height(unit, units, texture.density, lots.building)
    return Landscape(patch, unit, units, texture, height, lots.building, relief)


def _lay_bricks(
    place: tuple[F64, F64], cells: Cells, angle: F64, width_m: F64, length_m: F64
) -> _Bricks:
    owner = cells.owner
    cosine, sine = np.cos(angle), np.sin(angle)
    from_u = cells.site_x * cosine + cells.site_y * sine
    from_v = cells.site_y * cosine - cells.site_x * sine
    cosine, sine = np.take(cosine, owner), np.take(sine, owner)
    # Within a cell, float32 keeps a tenth of a millimetre.
    u = (place[0] * cosine + place[1] * sine - np.take(from_u, owner)).astype(np.float32)
    v = (place[1] * cosine - place[0] * sine - np.take(from_v, owner)).astype(np.float32)
    width = np.take(width_m.astype(np.float32), owner)
    length = np.take(length_m.astype(np.float32), owner)
    strip = np.floor(u / width)
    inside_u = u - strip * width
    # The golden ratio spreads the cuts of neighbouring strips evenly.
    start = strip * np.float32(0.6180339887)
    shifted = v + (start - np.floor(start)) * length
    brick = np.floor(shifted / length)
    inside_v = shifted - brick * length
    edge = np.minimum(inside_u, width - inside_u)
    np.minimum(edge, np.minimum(inside_v, length - inside_v), out=edge)
    half = _BRICKS // 2
    number = (np.clip(strip, -half, half - 1) + half) * _BRICKS
    number += np.clip(brick, -half, half - 1) + half
    return _Bricks(u, v, edge, owner * _BRICKS**2 + number.astype(np.int64))


def _overlay(
    blocks: Cells,
    roads: Cells,
    stands: Cells,
    bricks: _Bricks,
    relief: Relief,
    lots: Lots,
    hedge_m: F64,
) -> U8:
    """Decide what lies over the parcels; 0 where the parcel shows. Later rules win."""
    cover = np.zeros(blocks.owner.shape, dtype=np.uint8)
    # A hedge has trees over its whole width; a margin without a hedge is grass, 2 m wide.
    hedge = hedge_m[blocks.owner]
    cover[bricks.edge_m < 1.0] = Cover.MARGIN
    cover[(bricks.edge_m < hedge / 2) & (hedge > 0)] = Cover.HEDGE
    nature = relief.draw_nature(stands)
    np.copyto(cover, nature, where=nature > 0)
    track = blocks.border_m
    cover[(track < 5.0) & (nature == 0)] = Cover.MARGIN
    cover[track < 1.6] = Cover.TRACK
    np.copyto(cover, lots.cover, where=lots.cover > 0)
    water = relief.draw_water()
    np.copyto(cover, water, where=water > 0)
    lots.building[water > 0] = 0
    width = 3.0 + 3.0 * to_uniform(roads.bits, draw=5)[roads.owner]
    on_road = roads.border_m < width
    cover[on_road] = Cover.ROAD
    lots.building[on_road] = 0
    return cover


def _number_units(
    seed: int, blocks: Cells, stands: Cells, parcel: I64, cover: U8
) -> tuple[I64, Units]:
    """Give the parcels and surfaces of a patch numbers without gaps and draw what they are."""
    n_parcels = len(blocks.bits) * _BRICKS**2
    n_blocks = len(blocks.bits)
    # Surfaces belong to a block, woods and other nature to a stand: cells after the blocks.
    cell = np.where(_IN_STANDS[cover], stands.owner + n_blocks, blocks.owner)
    key = np.where(cover > 0, n_parcels + cell * _NATURE + cover, parcel)
    present = np.zeros(n_parcels + (n_blocks + len(stands.bits)) * _NATURE, dtype=bool)
    present[key.ravel()] = True
    keys = np.flatnonzero(present)
    number = np.zeros(len(present), dtype=np.int64)
    number[keys] = np.arange(len(keys))
    is_parcel = keys < n_parcels
    cell = np.where(is_parcel, keys // _BRICKS**2, (keys - n_parcels) // _NATURE)
    part = np.where(is_parcel, keys % _BRICKS**2, 4096 + (keys - n_parcels) % _NATURE)
    fixed = np.where(is_parcel, 0, (keys - n_parcels) % _NATURE)
    cell_bits = np.concatenate([blocks.bits, stands.bits]).view(np.int64)
    bits: U64 = hash_ints(derive_seed(seed, "units"), cell_bits[cell], part)
    place = (
        np.concatenate([blocks.site_x, stands.site_x])[cell],
        np.concatenate([blocks.site_y, stands.site_y])[cell],
    )
    return number[key], draw_units(seed, bits, fixed.astype(np.uint8), place)


def _plant_rows(texture: F32, u: F32, unit: I64, units: Units) -> None:
    """Replace the texture of orchards by rows of trees 5 to 7 m apart.

    Vines stand 2.5 to 3 m apart, which 2.5 m pixels average out, so vineyards keep a texture.
    """
    row_m = np.where(units.cover == Cover.ORCHARD, 5.0 + 2.0 * to_uniform(units.bits, draw=7), 0.0)[
        unit
    ]
    planted = row_m > 0
    phase = np.mod(u[planted] / row_m[planted], 1.0)
    texture[planted] = np.where(phase < 0.5, 1.0, -1.0) + 0.4 * texture[planted]


_IN_STANDS = np.isin(
    np.arange(N_COVERS),
    (Cover.BROADLEAF, Cover.CONIFER, Cover.SHRUB, Cover.HEATH, Cover.PASTURE, Cover.ROCK),
)
"""Covers whose units are stands where they do not fill a parcel."""
