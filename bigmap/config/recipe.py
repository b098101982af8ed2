"""The recipe: one validated, frozen description of a map.

This module is the only reader of YAML. Units stand in the names of the fields, unknown
fields are refused, and a wrong value gives one sentence that names the field.

Paths of inputs (``area.file``, ``source.files``, ``model.weights``, labels, certificates of a
cluster) are relative to the folder of the file that names them; ``output.path``, ``samples.path``
and ``training.weights`` are relative to the current folder.
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pyproj import CRS
from pyproj.exceptions import CRSError

from bigmap.config.cluster import ClusterConfig, ClusterFile, LocalCluster
from bigmap.config.parts import (
    BandResampling,
    Metres,
    Number,
    Part,
    Place,
    Positive,
    Whole,
)
from bigmap.config.training import SamplesConfig, TrainingConfig
from bigmap.errors import RecipeError
from bigmap.redaction import holds_secret

MAX_RECIPE_BYTES = 1_000_000
CLUSTER_PATHS = ("scheduler_file", "tls_ca_file", "tls_cert_file", "tls_key_file")
PATH_FIELDS = (
    ("area", "file"),
    ("source", "files"),
    ("source", "cache"),
    ("model", "weights"),
    *(("cluster", field) for field in CLUSTER_PATHS),
    ("samples", "labels", "file"),
    ("samples", "labels", "files"),
    ("samples", "target", "files"),
    ("samples", "split", "file"),
)
CLUSTER_FOLDER = Path("cluster")
NAMED_CLUSTERS = ("local", "local-cuda")
"""Kinds that need no settings, and so no file."""

UTM = "utm"
"""In place of a CRS: a grid for each UTM zone."""
MAX_CROSSING_DEGREES = 180
"""Width to which a box across the antimeridian is believed; beyond, west and east were swapped."""
LEADING_ZERO = re.compile(r"[-+]?0[0-9][0-9_.]*")
MAX_SHOWN = 80
REMOTE_OUTPUTS = ("s3", "gs", "az")


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
    core_px: Positive = Field(128, description="Side of a window's core, in input pixels.")
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
            if value & (value - 1):
                raise ValueError(f"{name} {value} is not a power of two")
        for inner, outer in (
            ("core_px", "cell_px"),
            ("cell_px", "block_px"),
            ("chunk_px", "shard_px"),
        ):
            if getattr(self, outer) % getattr(self, inner):
                raise ValueError(
                    f"{outer} {getattr(self, outer)} is not a multiple of {inner} "
                    f"{getattr(self, inner)}"
                )
        return self


class SclMask(Part):
    """Sen2Cor's scene classification; pixels of the listed classes are clear."""

    kind: Literal["scl"] = "scl"
    asset: str = "scl"
    clear_values: tuple[Whole, ...] = Field(
        (2, 4, 5, 6, 7, 11),
        min_length=1,
        description="SCL classes that count as clear; 0 and 1 never should.",
    )
    dilate_px: Whole = Field(0, ge=0, le=64, description="Grow what is not clear, in input pixels.")


class BinaryMask(Part):
    """A mask band with one value for clear pixels, such as Sentinel Hub's ``clm``."""

    kind: Literal["binary"]
    asset: str
    clear_value: Whole = Field(0, ge=0, le=65535)
    nodata: Whole | None = Field(
        255,
        description="Value without data, beside what the files declare; null where there is none.",
    )
    dilate_px: Whole = Field(0, ge=0, le=64, description="Grow what is not clear, in input pixels.")

    @model_validator(mode="after")
    def _check(self) -> BinaryMask:
        if self.clear_value == self.nodata:
            raise ValueError(f"clear_value is nodata ({self.nodata}); set nodata: null")
        return self


class ProbabilityMask(Part):
    """A cloud probability; pixels up to the limit are clear."""

    kind: Literal["probability"]
    asset: str
    max_percent: Whole = Field(40, ge=0, le=100)
    max_value: Whole | None = Field(
        None,
        ge=1,
        le=65535,
        description="Value of the files that means 100 %: 255 for Sentinel Hub's clp, 1 for shares "
        "in floats; by default 100, in whole numbers.",
    )
    nodata: Whole | None = Field(
        None, description="Value without data, beside what the files declare."
    )
    dilate_px: Whole = Field(0, ge=0, le=64, description="Grow what is not clear, in input pixels.")


class BitsMask(Part):
    """A mask band whose bits each mean something, such as HLS's ``Fmask`` or ``qa60``."""

    kind: Literal["bits"]
    asset: str
    bits: tuple[Annotated[Whole, Field(ge=0, le=31)], ...] = Field(
        min_length=1,
        description="Bits that are 0 in a clear pixel, the lowest being 0: 1, 2 and 3 of HLS's "
        "Fmask, 10 and 11 of qa60.",
    )
    nodata: Whole | None = Field(
        None, description="Value without data, beside what the files declare."
    )
    dilate_px: Whole = Field(0, ge=0, le=64, description="Grow what is not clear, in input pixels.")


class NoMask(Part):
    """No mask: every pixel with data is clear."""

    kind: Literal["none"]


MaskConfig = Annotated[
    SclMask | BinaryMask | ProbabilityMask | BitsMask | NoMask, Discriminator("kind")
]


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
    batch_windows: Whole = Field(8, ge=1, le=1024)
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
        raw = self.model_dump(mode="json")
        return yaml.dump(raw, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without the parts that surprise: see each method."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases: a few lines of them expand to more than fits in memory."""
        if self.check_event(yaml.AliasEvent):
            problem = "anchors and aliases are refused"
            raise yaml.composer.ComposerError(None, None, problem, self.current_event.start_mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Give values that do not fit their tag the line they stand on."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            tag = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"a value is no {tag}", node.start_mark
            ) from None

    def construct_scalar(self, node: Any) -> Any:
        """Refuse halves of characters, which an escape can name and no file can hold."""
        value = super().construct_scalar(node)
        if not _is_text(value):
            problem = "a text holds half a character (a lone surrogate)"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys, of which YAML would silently take the last."""
        if not isinstance(node, yaml.MappingNode):  # a tag can claim anything
            problem = "a value is no mapping"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        counts = Counter(str(self.construct_object(key, deep=True)) for key, _ in node.value)
        doubled = sorted(key for key, count in counts.items() if count > 1)
        if doubled:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {', '.join(doubled)} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def _is_text(value: object) -> bool:
    return not (isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value))


class _PlainDumper(yaml.SafeDumper):
    """Quotes a text that either version of YAML would take for something else."""


# As YAML 1.2 has it, less hexadecimals: in 1.1 010 is 8, 1:30 is 90 and a class named no is false.
# A text where a number belongs is then an error of its field, and so is a wrong day.
_PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_StrictLoader.yaml_implicit_resolvers = {}
for _kind, _pattern in _PLAIN.items():
    for _class in (_StrictLoader, _PlainDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), None
        )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


SIMULATED_KEEPS = ("start", "end", "max_cloud_percent")
"""Fields of any source that hold for simulated scenes in its place."""


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    simulated: bool = False,
) -> Recipe:
    """Read and validate a recipe.

    Parameters
    ----------
    path
        A YAML file.
    overrides
        ``dotted.key=value`` settings that replace the recipe's own; values are YAML.
    cluster
        A cluster file, or a name as in :func:`find_cluster`, that replaces the recipe's own
        ``cluster``.
    simulated
        Use simulated scenes of the same days in place of the recipe's source; overrides of
        ``source`` are then those of a simulated one.

    Raises
    ------
    RecipeError
        If the file cannot be read, is not YAML, or a field is wrong; the message names both.
    """
    file = Path(path)
    raw, origin = read_yaml(file), str(file)
    if cluster is not None:
        raw["cluster"], source = find_cluster(cluster)
        origin += f" with {source}"
    given = raw.get("source")
    if simulated and isinstance(given, dict):
        common = {field: given[field] for field in SIMULATED_KEEPS if field in given}
        raw["source"] = {"kind": "simulated"} | common
    for override in overrides:
        _apply_override(raw, override)
    _resolve_paths(raw, file)
    return parse_recipe(raw, origin=origin)


def load_cluster(name: str, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read and validate a cluster file.

    Parameters
    ----------
    name
        A path, or a name as in :func:`find_cluster`.
    overrides
        ``cluster.key=value`` settings that replace the file's own, as for a recipe.

    Raises
    ------
    RecipeError
        If the file cannot be found or read, or a field is wrong; the message names both.
    """
    section, origin = find_cluster(name)
    raw: dict[str, Any] = {"cluster": section}
    for override in overrides:
        _apply_override(raw, override)
    _refuse_secrets(raw, origin)
    try:
        return ClusterFile.model_validate(raw).cluster
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_explain(error)}") from None


def find_cluster(name: str) -> tuple[dict[str, Any], str]:
    """Return the section that a cluster file holds, its paths resolved, and where it was found.

    Parameters
    ----------
    name
        Path of a file; or ``NAME`` for ``cluster/NAME.yaml`` in the current folder; or, where
        there is no such file, ``local`` or ``local-cuda`` with all their defaults.

    Raises
    ------
    RecipeError
        If there is none.
    """
    for file in (Path(name), CLUSTER_FOLDER / f"{name}.yaml"):
        if file.is_file():
            raw = {"cluster": read_yaml(file, starts_with="kind:")}
            _resolve_paths(raw, file)
            return raw["cluster"], str(file)
    if name in NAMED_CLUSTERS:
        return {"kind": name}, f"cluster {name}"
    known = ", ".join(list_clusters())
    raise RecipeError(f"--cluster {name}: no such file or name; there are {known}")


def list_clusters() -> dict[str, str]:
    """Return the names that :func:`find_cluster` knows, each with its file, empty where none."""
    files = {file.stem: str(file) for file in sorted(CLUSTER_FOLDER.glob("*.yaml"))}
    return dict.fromkeys(NAMED_CLUSTERS, "") | files


def _resolve_paths(raw: dict[str, Any], file: Path) -> None:
    """Take relative paths from the folder of their file; absolute ones stay."""
    for field in PATH_FIELDS:
        try:
            _resolve_field(raw, field, file.parent)
        except (OSError, RuntimeError, ValueError) as error:
            raise RecipeError(f"{file}: {'.'.join(field)}: is not a path ({error})") from None


def parse_recipe(raw: Mapping[str, Any], *, origin: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe; see :func:`load_recipe`."""
    _refuse_secrets(raw, origin)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_explain(error)}") from None


def _refuse_secrets(raw: Mapping[str, Any], origin: str) -> None:
    """Refuse a secret in any name or value, as recipes are stored with every map."""
    waiting: list[tuple[str, Any]] = [("", raw)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{field}.{name}".lstrip("."), part) for name, part in value.items()]
            waiting += [(field or "recipe", str(name)) for name in value]
        elif isinstance(value, list | tuple):
            waiting += [(f"{field}.{index}", part) for index, part in enumerate(value)]
        elif isinstance(value, str) and holds_secret(value):
            raise RecipeError(
                f"{origin}: {field}: must not hold credentials or a signature; give them in the "
                "environment"
            )


def read_yaml(file: Path, *, starts_with: str = "name:, area:, grid:") -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping, with the safe loader only."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_RECIPE_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{file}: cannot be read ({reason})") from None
    if len(content) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{file}: larger than {MAX_RECIPE_BYTES} bytes, so not a recipe")
    raw = parse_yaml(content, origin=str(file))
    if not isinstance(raw, dict):
        raise RecipeError(f"{file}: holds no fields; it should start with {starts_with}")
    return raw


def parse_yaml(content: str | bytes, *, origin: str) -> Any:
    """Parse YAML in UTF-8; bytes of a file, or the text of an override.

    Raises
    ------
    RecipeError
        If it is not YAML, or has tags, aliases or duplicate keys; the message names the line.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of the safe one
    except (UnicodeError, yaml.reader.ReaderError):
        raise RecipeError(f"{origin}: is not a text in UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "too deeply nested"
        raise RecipeError(f"{origin}: is not valid YAML{where}: {problem}") from None


def write_schema(path: str | Path, *, of: Literal["recipe", "cluster"] = "recipe") -> None:
    """Write the JSON Schema of recipes or cluster files, which editors use for completion."""
    kind: TypeAdapter[Any] = TypeAdapter(Recipe if of == "recipe" else ClusterConfig)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | kind.json_schema()
    Path(path).write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"--set {override!r}: write it as dotted.key=value")
    value = parse_yaml(text, origin=f"--set {key}")
    section = raw
    for part in parts[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {key}: {part} is a value and holds no fields")
    section[parts[-1]] = value


def _resolve_field(raw: dict[str, Any], field: tuple[str, ...], folder: Path) -> None:
    section: Any = raw
    for part in field[:-1]:
        section = section.get(part) if isinstance(section, dict) else None
    if isinstance(section, dict) and field[-1] in section:
        section[field[-1]] = _resolve(section[field[-1]], folder)


def _resolve(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_resolve(entry, folder) for entry in value]
    if not isinstance(value, str) or "://" in value:
        return value
    path = (folder / Path(value).expanduser()).resolve()
    # Names from macOS hold accents apart from their letters; they look the same.
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return str(path if path.exists() else next((each for each in forms if each.exists()), path))


def _explain(error: ValidationError) -> str:
    """Turn the first of pydantic's errors into one sentence that names the field."""
    errors = error.errors(include_url=False)
    # An unknown key explains a missing one (a misspelt field gives both), so it comes first.
    errors.sort(key=lambda entry: entry["type"] not in ("extra_forbidden", "invalid_key"))
    first = errors[0]
    field = _name_field(first["loc"]) or "recipe"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            return f"{field} is not a known field{_suggest(first['loc'])}{more}"
        case "missing":
            return f"{field} is missing{more}"
        case "union_tag_not_found":
            return f"{field}.kind is missing{more}"
        case "union_tag_invalid":
            given, known = first["ctx"]["tag"], first["ctx"]["expected_tags"]
            return f"{field}.kind: {_show(given)} is unknown; there are {known}{more}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{field}: must hold fields{_contrast(first['input'])}{more}"
        case "value_error":
            return f"{field}: {first['msg'].removeprefix('Value error, ')}{more}"
        case "int_type" | "float_type" if LEADING_ZERO.fullmatch(str(first["input"])):
            return (
                f"{field}: {first['input']} may be meant as octal or as decimal; write the number "
                f"without a leading 0{more}"
            )
    return f"{field}: {first['msg']}{_contrast(first['input'])}{more}"


def _contrast(given: Any) -> str:
    """Say what was given, where that is short."""
    if not isinstance(given, str | int | float | bool):
        return ""
    return f", not {_show(given)}"


def _show(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


UNION_TAGS = {
    "source": ("stac-api", "files", "static-catalog", "simulated"),
    "mask": ("scl", "binary", "probability", "none"),
    "cluster": ("local", "local-cuda", "slurm", "existing"),
    "labels": ("vector", "raster", "simulated"),
    "target": ("downsampled", "sensor"),
    "split": ("cells", "polygons", "within-scene", "scenes"),
    "objective": ("segmentation", "dual", "end-to-end", "image"),
    "schedule": ("constant", "cosine", "plateau", "step"),
}


def _name_field(loc: tuple[int | str, ...]) -> str:
    """Join an error's location, without the tags that pydantic adds to it after a union."""
    before: tuple[int | str, ...] = ("", *loc)
    return ".".join(
        str(part) if str(part).isprintable() else repr(part)
        for parent, part in zip(before, loc, strict=False)
        if part not in UNION_TAGS.get(str(parent), ())
    )


def _suggest(loc: tuple[int | str, ...]) -> str:
    # The same name may be a field of another part, or of another kind of source.
    known = sorted(_list_fields() - {str(loc[-1])})
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def _list_fields() -> frozenset[str]:
    known: set[str] = set()

    def collect(schema: Any) -> None:
        if isinstance(schema, dict):
            known.update(schema.get("properties", {}))
            for value in schema.values():
                collect(value)

    collect(Recipe.model_json_schema())
    return frozenset(known)
