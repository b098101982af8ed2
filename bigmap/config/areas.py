"""Where a map lies: its area, and the grid with its partition."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, field_validator, model_validator
from pyproj import CRS
from pyproj.exceptions import CRSError

from bigmap.config.parts import Metres, Number, Part, Place, Positive

UTM = "utm"
"""In place of a CRS: a grid for each UTM zone."""
MAX_CROSSING_DEGREES = 180
"""Width to which a box across the antimeridian is believed; beyond, west and east were swapped."""


class AreaConfig(Part):
    """What to map: a bounding box or the polygons of a file."""

    bbox: tuple[Number, Number, Number, Number] | None = Field(
        None,
        description="West, south, east, north in degrees (EPSG:4326); west > east crosses the "
        "antimeridian.",
    )
    file: Place | None = Field(None, description="Polygons: GeoJSON, GPKG or GeoParquet, any CRS.")
    layer: str | None = Field(
        None, description="Of a file with several layers; the folders of a KML are united."
    )
    buffer_m: Number = Field(0.0, ge=0, le=1e6, description="Grow the area by this many metres.")
    clip_bbox: tuple[Number, Number, Number, Number] | None = Field(
        None, description="Map only what lies inside this box too, in degrees; set by --bbox."
    )

    @model_validator(mode="after")
    def _check(self) -> AreaConfig:
        if (self.bbox is None) == (self.file is None):
            raise ValueError("give either bbox or file")
        if self.layer is not None and self.file is None:
            raise ValueError("layer is one of a file; leave it out")
        for box in (self.bbox, self.clip_bbox):
            if box is not None:
                check_lonlat_bbox(box)
        return self


def check_lonlat_bbox(bbox: Sequence[float]) -> None:
    """Refuse a west, south, east, north box in degrees that cannot be one."""
    west, south, east, north = bbox
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= 90 and north <= 90):
        raise ValueError(
            f"bbox {list(bbox)} is not in degrees; give west, south, east, north in EPSG:4326"
        )
    if south >= north or west == east:
        raise ValueError(f"bbox {list(bbox)} is empty; give west, south, east, north")
    if west > east and east + 360 - west > MAX_CROSSING_DEGREES:
        raise ValueError(
            f"bbox {list(bbox)} goes around the Earth from west to east; give west, south, east, "
            "north"
        )


class GridConfig(Part):
    """The input grid and its partition; the lattices start at the origin of the CRS."""

    crs: str = Field(
        description="Projected CRS in metres, for example EPSG:25831; or utm: each UTM zone on its "
        "own grid, one group of the map for each."
    )
    gsd_m: Number = Field(
        10.0, ge=0.1, le=10_000, description="Pixel size of the input grid, in metres."
    )
    anchor_m: tuple[Metres, Metres] = Field(
        (0.0, 0.0),
        description="A corner of pixels, x and y in metres of the CRS, to which all lattices are "
        "anchored; move it off the origin only to meet another product's pixels.",
    )
    core_px: Positive | None = Field(
        None,
        description="Side of a window's core, in input pixels; by default that with which the "
        "model computes the fewest pixels twice.",
    )
    cell_px: Positive = Field(
        1024, description="Side of a cell, whose cores share one choice of dates, in input pixels."
    )
    block_px: Positive = Field(
        2048, description="Side of a block, the unit of work, in input pixels: whole cells."
    )
    shard_px: Positive = Field(4096, description="Side of a Zarr shard, in output pixels.")
    chunk_px: Positive = Field(512, description="Side of a Zarr chunk, in output pixels.")

    @field_validator("crs")
    @classmethod
    def _check_crs(cls, value: str) -> str:
        if value == UTM:
            return value
        try:
            crs = CRS.from_user_input(value)
        except CRSError as error:
            raise ValueError(f"{value!r} is not a CRS that PROJ knows") from error
        units = {axis.unit_name for axis in crs.axis_info}
        if not crs.is_projected or units != {"metre"}:
            raise ValueError(
                f"{value} has no metres as its unit; choose a projected CRS in metres, "
                "for example EPSG:3035 or a UTM zone"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> GridConfig:
        for name in ("core_px", "cell_px"):
            value = getattr(self, name)
            if value is not None and value & (value - 1):
                raise ValueError(f"{name} {value} is not a power of two")
        for inner, outer in (
            ("core_px", "cell_px"),
            ("cell_px", "block_px"),
            ("chunk_px", "shard_px"),
        ):
            part, whole = getattr(self, inner), getattr(self, outer)
            if part is not None and whole % part:
                raise ValueError(f"{outer} {whole} is not a multiple of {inner} {part}")
        return self
