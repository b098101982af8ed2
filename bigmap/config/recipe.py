"""The recipe: one validated, frozen description of a map.

Units stand in the names of the fields, unknown fields are refused, and a wrong value gives one
sentence that names the field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from bigmap.config.areas import AreaConfig, GridConfig
from bigmap.config.cluster import ClusterConfig, LocalCluster
from bigmap.config.parts import BandResampling, Number, Part, Place, Whole
from bigmap.config.sources import SourceConfig
from bigmap.config.strict_yaml import dump_yaml
from bigmap.config.training import SamplesConfig, TrainingConfig

REMOTE_OUTPUTS = ("s3", "gs", "az")


class ReadingConfig(Part):
    """How pixels come onto the grid."""

    loader: Literal["stackstac", "odc-stac"] = "stackstac"
    resampling: BandResampling = Field(
        "bilinear", description="Resampling of bands; masks are always nearest."
    )
    on_error: Literal["fail", "drop-date"] = Field(
        "fail",
        description="What cannot be read fails its block, or drops its date there and marks the "
        "block degraded.",
    )


class DatesConfig(Part):
    """Which dates a cell is mapped from: the clearest first."""

    max_per_cell: Whole = Field(12, ge=1, le=400)
    min_clear_percent: Number = Field(
        25.0,
        ge=0,
        le=100,
        description="Least share of clear pixels of what a date shows of the area in a cell.",
    )


class ClassConfig(Part):
    """One class of a legend."""

    value: Whole = Field(ge=0, le=254, description="Value in the map.")
    name: str = Field(min_length=1, max_length=80)
    colour: str = Field("#808080", pattern=r"^#[0-9a-fA-F]{6}$")


class ModelConfig(Part):
    """The model; its upscale, halo and layers follow from it."""

    name: str
    bands: tuple[str, ...] | None = Field(
        None, min_length=1, description="Common names of the input bands; by default the paper's."
    )
    legend: str | tuple[ClassConfig, ...] | None = Field(
        None, description="Classes, or the name of a legend; by default the paper's."
    )
    weights: Place | None = Field(None, description="A safetensors file with its model card.")
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @field_validator("bands")
    @classmethod
    def _check_bands(cls, bands: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if bands and len(set(bands)) < len(bands):
            raise ValueError(f"{list(bands)} names a band twice")
        return bands

    @field_validator("legend")
    @classmethod
    def _check_legend(
        cls, legend: str | tuple[ClassConfig, ...] | None
    ) -> str | tuple[ClassConfig, ...] | None:
        if isinstance(legend, tuple):
            if len(legend) < 2:
                raise ValueError("a legend needs two classes or more")
            for field in ("value", "name"):
                if len({getattr(entry, field) for entry in legend}) < len(legend):
                    raise ValueError(f"two classes have the same {field}")
        return legend


class InferenceConfig(Part):
    """How windows go through the model."""

    precision: Literal["float32", "bfloat16"] = "float32"
    batch_windows: Whole | None = Field(
        None,
        ge=1,
        le=1024,
        description="Windows that the model sees at once; by default one on CPUs, eight on GPUs.",
    )
    overlap: Literal["auto", "trim", "blend"] = Field(
        "auto",
        description="Cut windows back to their cores, or blend neighbours over their halos; auto "
        "follows the kind of the model.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"


class OutputConfig(Part):
    """The map."""

    path: Place = Field(description="Folder or s3:// URL that ends in .zarr.")
    layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="Layers to write; by default all that the model has."
    )
    overviews: Whole = Field(3, ge=0, le=12, description="Number of halved levels below the map.")

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: str) -> str:
        if value.startswith("~"):
            try:
                value = str(Path(value).expanduser())
            except RuntimeError as error:
                raise ValueError(f"{value!r} is not a path ({error})") from None
        value = value.rstrip("/")
        if not value.endswith(".zarr"):
            raise ValueError(f"{value!r} does not end in .zarr")
        scheme, separator, _ = value.rpartition("://")
        if separator and scheme not in REMOTE_OUTPUTS:
            raise ValueError(
                f"{value!r} cannot be written; give a folder, or a URL with s3://, gs:// or az://"
            )
        return value


class RunConfig(Part):
    """How blocks are tried. Nothing here decides a value of the map."""

    block_timeout_s: Number | None = Field(
        None,
        ge=1,
        description="Seconds that a block may run on its worker; then the worker is ended and "
        "started anew, and the block tried again, three times in all. Blocks of a worker wait for "
        "each other's use of its device, so set it far above the slowest. By default no limit.",
    )


class Recipe(Part):
    """One map: area, grid, source, dates, model and output."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str | None = None
    area: AreaConfig
    grid: GridConfig
    source: SourceConfig
    reading: ReadingConfig = ReadingConfig()
    dates: DatesConfig = DatesConfig()
    model: ModelConfig
    inference: InferenceConfig = InferenceConfig()
    output: OutputConfig
    cluster: ClusterConfig = LocalCluster()
    run: RunConfig = RunConfig()
    samples: SamplesConfig | None = None
    training: TrainingConfig | None = None

    def to_yaml(self) -> str:
        """Write the resolved recipe as YAML that :func:`parse_recipe` reads back."""
        return dump_yaml(self.model_dump(mode="json"))
