"""Where scenes come from, and how they are fetched."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from pydantic import Discriminator, Field, model_validator

from bigmap.config.masks import MaskConfig, SclMask
from bigmap.config.parts import Number, Part, Place, Whole


class Access(Part):
    """How pixels are fetched. Secrets come from the environment, never from here."""

    sign: Literal["none", "planetary-computer"] = Field(
        "none", description="Sign hrefs when a block is read, so that they cannot expire."
    )
    unsigned_s3: bool = Field(True, description="Read s3:// hrefs without credentials.")
    requester_pays: bool = Field(False, description="Accept the cost of requester-pays buckets.")
    s3_endpoint: Place | None = Field(None, description="Host of an S3 service other than AWS.")
    timeout_s: Number = Field(30.0, gt=0, description="Time without data until a request fails.")
    retries: Whole = Field(4, ge=0, le=20, description="Further attempts at a request or a read.")


class _Source(Part):
    start: dt.date = Field(description="First day, included.")
    end: dt.date = Field(description="Last day, included.")
    max_cloud_percent: Number = Field(100.0, ge=0, le=100, description="Limit on eo:cloud_cover.")
    harmonise: Literal["flag", "baseline", "drop", "refuse"] = Field(
        "flag",
        description="Where an item contradicts itself about the -0.1 offset of baseline 04.00: "
        "believe its flag, believe its baseline, drop the item, or refuse to run.",
    )
    mask: MaskConfig = SclMask()
    access: Access = Access()

    @model_validator(mode="after")
    def _check_dates(self) -> _Source:
        if self.end < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        return self


class StacApiSource(_Source):
    """A STAC API with item search."""

    kind: Literal["stac-api"]
    url: Place = Field(pattern=r"^https?://[^/]", description="Root of the API.")
    collection: str


class FilesSource(_Source):
    """Items in files: STAC items, item collections (JSON) or stac-geoparquet."""

    kind: Literal["files"]
    files: tuple[Place, ...] = Field(min_length=1)
    collection: str | None = Field(None, description="Keep items of this collection only.")


class StaticCatalogSource(_Source):
    """A static catalogue, followed from its catalog.json or collection.json."""

    kind: Literal["static-catalog"]
    files: tuple[Place, ...] = Field(min_length=1, max_length=1)
    collection: str | None = Field(None, description="Keep items of this collection only.")


class SimulatedSource(_Source):
    """Simulated Sentinel-2 scenes, written as COGs when they are first needed."""

    kind: Literal["simulated"]
    seed: Whole = Field(0, ge=0)
    scene_px: Literal[366, 1098] = Field(
        1098,
        description="Side of a scene's files, in pixels of 10 m; it changes no pixel. 366 writes "
        "less beyond a small area, 1098 makes COGs with tiles of 1024 px and overviews.",
    )
    cache: Place | None = Field(
        None, description="Folder of the scenes; by default in the user's cache folder."
    )
    cache_gb: Number = Field(
        20.0,
        gt=0,
        description="Limit of that folder; the scenes that were not used for the longest time go.",
    )


RealSourceConfig = StacApiSource | FilesSource | StaticCatalogSource
"""Sources that hold items; a simulated one becomes files first."""
SourceConfig = Annotated[RealSourceConfig | SimulatedSource, Discriminator("kind")]
