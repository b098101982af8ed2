"""The chips of a recipe's samples: one sharded Zarr that random access reads fast.

A chip is a square of the grid with all its dates, what is known of it (labels, a target image or
both), its split and its place. One inner chunk holds one chip of one array, so that reading a chip
is one request an array; a shard holds many chips, so that a set has few objects. Whoever writes
owns whole shards.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import TypeAdapter

from bigmap.errors import SamplesError
from bigmap.files import locate
from bigmap.mapping.store.template import COMPRESSOR
from bigmap.mapping.store.zarr_stores import (
    DAMAGE,
    METADATA,
    MOST_BYTES,
    check_size,
    open_store,
    remove_store,
    tell_damage,
)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Values 0, 1, 2 of the array ``split``."""
UNLABELLED = 255
NO_DATE = np.iinfo(np.int32).min
"""In ``days``, where a chip has fewer dates than others."""
SHARD_BYTES = 64_000_000
"""Size of a shard before compression, at most; one chip at least."""
META = "bigmap:samples"
NO_SAMPLES = "there are no samples here; make them with bigmap extract"
EPOCH = dt.date(1970, 1, 1)

UInt16Array = npt.NDArray[np.uint16]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chip:
    """One training sample; padded dates are gone."""

    images: UInt16Array
    """(time, band, y, x): reflectance is ``1e-4 * DN - 0.1``, 0 is nodata; dates in order."""
    clear: BoolArray
    """(time, y, x); a clear pixel has data in every band."""
    days: tuple[dt.date, ...]
    labels: UInt8Array | None
    """(y * upscale, x * upscale): values of classes, 255 where unlabelled; None in a set without
    labels."""
    target: UInt16Array | None
    """(band, target y, target x): the image wanted, DN like ``images``; None in a set without."""
    split: Split
    row: int
    col: int
    """Of the chip's upper left corner, in pixels of the recipe's grid."""


@dataclass(frozen=True)
class ChipTemplate:
    """Everything that decides the shape of a set of chips; it is stored with them."""

    crs: str
    gsd_m: float
    """Pixel size of the chips' images, in metres."""
    chip_px: int
    max_dates: int
    bands: tuple[str, ...]
    upscale: int
    """Pixels of labels for one of the images, along each axis."""
    class_values: tuple[int, ...] = ()
    """Of the legend, in its order; empty without labels."""
    class_names: tuple[str, ...] = ()
    target_bands: tuple[str, ...] = ()
    """Empty without a target image."""
    target_px: int = 0
    """Side of the target image."""
    is_simulated: bool = False
    """Whether scenes, labels or targets are of the simulated world."""
    source: str = ""
    """Of scenes and labels, for people."""

    @property
    def fine_px(self) -> int:
        """Side of the labels."""
        return self.chip_px * self.upscale

    def arrays(self) -> dict[str, tuple[tuple[int, ...], str, int]]:
        """Return the shape of one chip, the dtype and the fill value of each pixel array."""
        side, dates = self.chip_px, self.max_dates
        shapes: dict[str, tuple[tuple[int, ...], str, int]] = {
            "images": ((dates, len(self.bands), side, side), "uint16", 0),
            "clear": ((dates, side, side), "bool", 0),
            "days": ((dates,), "int32", NO_DATE),
        }
        if self.class_values:
            shapes["labels"] = ((self.fine_px, self.fine_px), "uint8", UNLABELLED)
        if self.target_bands:
            shape = (len(self.target_bands), self.target_px, self.target_px)
            shapes["target"] = (shape, "uint16", 0)
        return shapes

    @property
    def chip_bytes(self) -> int:
        """Size of the arrays of one chip, uncompressed."""
        return sum(
            math.prod(shape) * np.dtype(dtype).itemsize
            for shape, dtype, _ in self.arrays().values()
        )

    @property
    def shard_chips(self) -> int:
        """Chips of one shard."""
        return max(1, min(4096, SHARD_BYTES // self.chip_bytes))


@dataclass(frozen=True)
class ChipPlaces:
    """What is known of all chips of a set without reading their pixels, in their order."""

    split: UInt8Array
    """(chip,), index into :data:`SPLITS`."""
    row: npt.NDArray[np.int64]
    col: npt.NDArray[np.int64]
    """(chip,), of the upper left corner, in pixels of the recipe's grid."""
    dates: npt.NDArray[np.int32]
    """(chip,), number of dates."""
    class_px: npt.NDArray[np.int64]
    """(chip, class): labelled pixels of each class of the legend."""

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.split)


_DIMS = {
    "images": ("chip", "time", "band", "y", "x"),
    "clear": ("chip", "time", "y", "x"),
    "days": ("chip", "time"),
    "labels": ("chip", "fine_y", "fine_x"),
    "target": ("chip", "target_band", "target_y", "target_x"),
}


def create_chips(
    path: str, template: ChipTemplate, places: ChipPlaces, *, facts: Mapping[str, Any]
) -> None:
    """Write the metadata of a set and all that is no pixel, replacing what lies there.

    Parameters
    ----------
    path
        Folder or URL that ends in .zarr.
    places
        Of its chips, in their order.
    facts
        More attributes: what the set was made of and what it holds.

    Raises
    ------
    SamplesError
        If the place cannot be written.
    """
    count = len(places)
    try:
        remove_store(path)
        root = zarr.open_group(open_store(path), mode="w", zarr_format=3)
        for name, (shape, dtype, fill) in template.arrays().items():
            root.create_array(
                name,
                shape=(count, *shape),
                dtype=dtype,
                chunks=(1, *shape),
                shards=(template.shard_chips, *shape),
                fill_value=fill,
                compressors=COMPRESSOR,
                dimension_names=_DIMS[name],
            )
        for name, values in vars(places).items():
            dims = ("chip", "class")[: values.ndim]
            array = root.create_array(
                name, shape=values.shape, dtype=values.dtype,
                chunks=tuple(max(1, side) for side in values.shape), dimension_names=dims,
                compressors=COMPRESSOR,
            )  # fmt: skip
            array[...] = values
        for name, units in (("images", "1"), ("target", "1")):
            if name in root:
                root[name].attrs.update({"scale": 1e-4, "offset": -0.1, "units": units})
        root["days"].attrs["units"] = "days since 1970-01-01"
        root.attrs.update({META: {"template": _plain(template), **facts}})
    except OSError as error:
        raise SamplesError(f"samples.path: {path}: cannot be written ({error})") from None


def _plain(template: ChipTemplate) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(template).items()}


def write_chips(path: str, first: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write whole shards of chips.

    Parameters
    ----------
    first
        Index of the first chip: a multiple of :attr:`ChipTemplate.shard_chips`.
    arrays
        By name, (chip, ...): whole shards, or up to the last chip.

    Raises
    ------
    SamplesError
        If they cannot be written.
    """
    try:
        root = zarr.open_group(open_store(path), mode="r+")
        for name, values in arrays.items():
            array = root[name]
            assert isinstance(array, zarr.Array)
            assert array.shards is not None
            stop = first + len(values)
            is_whole = stop % array.shards[0] == 0 or stop == array.shape[0]
            assert first % array.shards[0] == 0, "a shard has one writer"
            assert is_whole, "a shard has one writer"
            array[first:stop] = values
    except OSError as error:
        raise SamplesError(f"samples.path: {path}: cannot be written ({error})") from error


class ChipSet:
    """A set of chips, opened for reading; safe to use from several threads and after a fork.

    Parameters
    ----------
    path
        Folder or URL of the set.

    Raises
    ------
    SamplesError
        If there is none, its extraction has not come to its end, or it is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with self._tell_damage():
            self._metadata = _read_metadata(path)
            self._root = zarr.open_group(open_store(path, read_only=True), mode="r")
            facts: Any = self._root.attrs.get(META)
            if facts is None:
                raise FileNotFoundError(META)
            self.facts: dict[str, Any] = dict(facts)
        if not self.facts.get("complete"):
            raise SamplesError(
                f"samples.path: {path}: its extraction has not ended; go on with bigmap extract "
                "RECIPE --resume"
            )
        with self._tell_damage():
            given = vars(ChipTemplate(**self.facts["template"]))
            self.template = TypeAdapter(ChipTemplate).validate_python(given)
            self._arrays = self._open_arrays()

    def _tell_damage(self) -> AbstractContextManager[None]:
        return tell_damage(f"samples.path: {self.path}", missing=NO_SAMPLES, error=SamplesError)

    def _open_arrays(self) -> dict[str, Any]:
        """Open the arrays of pixels, and compare them with the template."""
        if not 0 < self.template.chip_bytes <= MOST_BYTES:
            raise ValueError(f"its chips are declared with {self.template.chip_bytes} bytes")
        arrays: dict[str, Any] = {name: self._root[name] for name in self.template.arrays()}
        count = arrays["images"].shape[0]
        for name, (shape, dtype, _) in self.template.arrays().items():
            if (arrays[name].shape, arrays[name].dtype) != ((count, *shape), np.dtype(dtype)):
                raise ValueError(f"its array {name} is not what its template says")
        return arrays

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.places)

    @cached_property
    def places(self) -> ChipPlaces:
        """Split, place and classes of all chips."""
        count = self._arrays["images"].shape[0]
        with self._tell_damage():
            values = {}
            for field in fields(ChipPlaces):
                array: Any = self._root[field.name]
                classes = (len(self.template.class_values),) if field.name == "class_px" else ()
                if array.shape != (count, *classes) or array.dtype.kind not in "iu":
                    raise ValueError(f"its array {field.name} is not of {count} chips")
                check_size(array)
                values[field.name] = np.asarray(array[...])
            places = ChipPlaces(**values)
            known = (places.split < len(SPLITS)) & (places.dates <= self.template.max_dates)
            if not (known & (places.dates >= 0)).all():
                raise ValueError("its chips have unknown splits or numbers of dates")
        return places

    def indices(self, split: Split) -> npt.NDArray[np.intp]:
        """Return the indices of the chips of a split, rising."""
        return np.flatnonzero(self.places.split == SPLITS.index(split))

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of reflectance by band, of the clear pixels of the training split."""
        with self._tell_damage():
            found = self.facts["statistics"]
            mean, std = (tuple(float(v) for v in found[key]) for key in ("mean", "std"))
            if not len(mean) == len(std) == len(self.template.bands):
                raise ValueError("its statistics are not those of its bands")
        return mean, std

    def read(self, index: int) -> Chip:
        """Read one chip.

        Raises
        ------
        SamplesError
            If an object of the set is damaged, or the set was cut anew since it was opened.
        """
        try:
            values = {name: np.asarray(array[index]) for name, array in self._arrays.items()}
        except (OSError, *DAMAGE) as error:
            self.check_unchanged()
            reason = str(error) or type(error).__name__
            raise SamplesError(f"{self.path}: chip {index} cannot be read ({reason})") from error
        # Chips that are gone read as nodata.
        self.check_unchanged()
        dates = int(self.places.dates[index])
        try:
            days = tuple(EPOCH + dt.timedelta(days=int(day)) for day in values["days"][:dates])
        except OverflowError:
            raise SamplesError(
                f"{self.path}: chip {index} has fewer dates than it says; cut the set anew"
            ) from None
        return Chip(
            images=values["images"][:dates],
            clear=values["clear"][:dates],
            days=days,
            labels=values.get("labels"),
            target=values.get("target"),
            split=SPLITS[int(self.places.split[index])],
            row=int(self.places.row[index]),
            col=int(self.places.col[index]),
        )

    def check_unchanged(self) -> None:
        """Refuse what was read since the set was opened, if it was cut anew in the meantime.

        Who cuts a set anew removes its metadata before its chips.

        Raises
        ------
        SamplesError
            If this is another set by now.
        """
        try:
            is_same = _read_metadata(self.path) == self._metadata
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise SamplesError(
                f"samples.path: {self.path}: was cut anew by bigmap extract while its chips were "
                "read; wait for its end and start again with --overwrite"
            )


def _read_metadata(path: str) -> bytes:
    filesystem, root = locate(path)
    return bytes(filesystem.cat_file(f"{root}/{METADATA}"))


def complete_chips(path: str) -> None:
    """Mark a set as whole; before that it cannot be opened."""
    root = zarr.open_group(open_store(path), mode="r+")
    facts: Any = root.attrs[META]
    root.attrs[META] = {**facts, "complete": True}


def is_complete(path: str) -> bool:
    """Tell whether a whole set lies at a place."""
    try:
        ChipSet(path)
    except SamplesError:
        return False
    return True


def stack_days(days: Sequence[dt.date], max_dates: int) -> npt.NDArray[np.int32]:
    """Return dates as days since 1970, padded by :data:`NO_DATE`, int32 (time,)."""
    padded = np.full(max_dates, NO_DATE, dtype=np.int32)
    padded[: len(days)] = [(day - EPOCH).days for day in days]
    return padded
