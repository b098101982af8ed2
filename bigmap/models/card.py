"""The card of a model's weights: what they were made for, and what is known of them.

A card is a STAC item of the machine learning model extension (``mlm:*``, version 1.4) beside the
weights, with their name and the ending ``.json``, so that a STAC catalogue can hold the model.
Training data and scores stand in fields of our own, since the extension has none for them.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pystac
import torch
from pydantic import TypeAdapter, ValidationError
from pystac import (
    ExtensionNotImplemented,
    ExtensionTypeError,
    RequiredPropertyMissing,
    STACError,
    STACTypeError,
)
from pystac.extensions.classification import Classification
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import (
    AssetGeneralMLMExtension,
    Hyperparameters,
    InputStructure,
    MLMExtension,
    ModelBand,
    ModelInput,
    ModelOutput,
    ResultStructure,
    TaskType,
    ValueScaling,
    ValueScalingType,
)
from pystac.extensions.raster import DataType

from bigmap.errors import ModelError
from bigmap.files import parse_json, write_and_sync
from bigmap.models.base import ClassEntry, MapModel, ModelSpec, OptionValue
from bigmap.models.layers import BandStatistics, count_parameters

SHA2_256 = "1220"
"""Multihash prefix of a SHA-256 (https://multiformats.io/multihash), as file:checksum wants."""
MAX_REASON = 200
"""Characters that a message takes of another library's."""


_CARD_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
    STACError, STACTypeError, ExtensionNotImplemented, ExtensionTypeError, RequiredPropertyMissing,
)  # fmt: skip
"""What a file that is no card, or half of one, raises when it is read."""


@dataclass(frozen=True)
class Training:
    """What is known of how weights came to be."""

    data: str = "unknown"
    """The scenes and labels, for people."""
    is_simulated: bool = False
    """Whether the scenes or the labels were simulated."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores on test areas, by name."""
    source: str = ""
    """Where the weights come from, if they were imported."""


@dataclass(frozen=True)
class ModelCard:
    """What weights belong to."""

    file: str
    """Of the card, for messages."""
    name: str
    options: Mapping[str, OptionValue]
    bands: tuple[str, ...]
    """Common names, in the order of the band axis."""
    legend: tuple[ClassEntry, ...]
    upscale: int
    checksum: str
    """Multihash of the weights file, hexadecimal."""
    training: Training = Training()

    @property
    def sha256(self) -> str:
        """The checksum as maps have it."""
        return "sha256:" + self.checksum.removeprefix(SHA2_256)

    def refuse_options(self, name: str, options: Mapping[str, OptionValue]) -> None:
        """Refuse a recipe's model or options where the weights were made for others.

        Raises
        ------
        ModelError
            Naming the field.
        """
        self._compare("name", self.name, name)
        for key, value in options.items():
            self._compare(f"options.{key}", self.options.get(key, value), value)

    def refuse_other(self, spec: ModelSpec) -> None:
        """Refuse a model whose bands, legend or upscale differ from those of the weights.

        Raises
        ------
        ModelError
            Naming the field.
        """
        self._compare("bands", list(self.bands), list(spec.bands))
        self._compare("legend", _list_classes(self.legend), _list_classes(spec.legend))
        self._compare("options.upscale", self.upscale, spec.upscale)

    def _compare(self, field: str, mine: object, wanted: object) -> None:
        if mine != wanted:
            raise ModelError(
                f"model.weights: {self.file}: is for {field} {mine}, but the recipe's model has "
                f"{wanted}"
            )


_CARD = TypeAdapter(ModelCard)
_COLOUR = re.compile(r"#[0-9a-f]{6}")

PACKAGED = "bigmap://"
"""Before the name of weights that come with bigmap."""


def find_weights(weights: str | Path) -> Path:
    """Return the file of weights: ``bigmap://NAME.safetensors`` is one that comes with bigmap.

    Raises
    ------
    ModelError
        If no such weights come with bigmap.
    """
    text = str(weights)
    if not text.startswith(PACKAGED):
        return Path(weights)
    folder = Path(str(resources.files("bigmap.models"))) / "weights"
    file = folder / text.removeprefix(PACKAGED)
    known = sorted(f"{PACKAGED}{each.name}" for each in folder.glob("*.safetensors"))
    if f"{PACKAGED}{file.name}" != text or text not in known:
        raise ModelError(
            f"model.weights: {text} does not come with bigmap; there are "
            f"{', '.join(known) or 'none'}"
        )
    return file


def card_file_of(weights: str | Path) -> Path:
    """Return the place of the card of a weights file."""
    return Path(weights).with_suffix(".json")


def checksum_file(file: str | Path) -> str:
    """Return the SHA-256 of a file as a multihash."""
    with Path(file).open("rb") as stream:
        return SHA2_256 + hashlib.file_digest(stream, "sha256").hexdigest()


def write_card(model: MapModel, weights: Path, training: Training) -> None:
    """Write the card of a model whose weights lie in a file."""
    item = _describe(model, weights, training)
    text = json.dumps(item.to_dict(), indent=2) + "\n"
    write_and_sync(card_file_of(weights), text.encode())


def read_card(weights: str | Path) -> ModelCard:
    """Read the card of a weights file and check the file against it.

    Raises
    ------
    ModelError
        If there is no card, it cannot be read, or the weights are not those it describes.
    """
    weights = find_weights(weights)
    file = card_file_of(weights)
    if not weights.is_file():
        raise ModelError(f"model.weights: {weights}: no such file")
    if not file.is_file():
        raise ModelError(
            f"model.weights: {weights}: has no model card {file.name} beside it, so its bands are "
            "unknown; bigmap models import writes one"
        )
    try:
        card = parse_card(parse_json(file.read_bytes()), origin=str(file))
    except _CARD_ERRORS as error:
        reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
        raise ModelError(f"model.weights: {file}: is not a model card ({reason})") from None
    if checksum_file(weights) != card.checksum:
        raise ModelError(
            f"model.weights: {weights}: is not the file that {file.name} describes; its checksum "
            "differs, so one of the two was changed or cut off"
        )
    return card


def parse_card(content: dict[str, Any], *, origin: str) -> ModelCard:
    """Turn the JSON of a card into what it says; errors are those of the fields."""
    item = pystac.Item.from_dict(content, migrate=False)
    extension = MLMExtension.ext(item)
    properties = item.properties
    entry, result = extension.input[0], extension.output[0]
    asset = item.assets["weights"]
    card = _validate(
        {
            "file": origin,
            "name": extension.architecture,
            "options": dict(extension.to_dict().get("mlm:hyperparameters", {})),
            "bands": [band if isinstance(band, str) else band.name for band in entry.bands],
            "legend": [
                {"value": x.value, "name": x.title or x.name, "colour": f"#{x.color_hint}".lower()}
                for x in result.classes or ()
            ],
            "upscale": properties["bigmap:upscale"],
            "checksum": FileExtension.ext(asset).checksum,
            "training": properties["bigmap:training"],
        }
    )
    values = [each.value for each in card.legend]
    if len(set(values)) < len(values) or not all(0 <= value <= 254 for value in values):
        raise ValueError("classes need values of their own from 0 to 254")
    if not all(_COLOUR.fullmatch(each.colour) for each in card.legend):
        raise ValueError("classes need colours of six hexadecimal digits")
    return card


def _validate(fields: dict[str, Any]) -> ModelCard:
    try:
        return _CARD.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}") from None


def _describe(model: MapModel, weights: Path, training: Training) -> pystac.Item:
    spec = model.spec
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    item = pystac.Item(weights.stem, None, None, now, {}, stac_extensions=[])
    tasks = [TaskType.SEMANTIC_SEGMENTATION] if spec.legend else [TaskType.SUPER_RESOLUTION]
    extension = MLMExtension.ext(item, add_if_missing=True)
    extension.apply(
        name=spec.title,
        architecture=spec.name,
        tasks=tasks,
        framework="pytorch",
        framework_version=torch.__version__.partition("+")[0],
        total_parameters=count_parameters(model),
        pretrained=True,
        pretrained_source=training.source or None,
        input=[_describe_input(model)],
        output=[_describe_output(model, tasks)],
        hyperparameters=Hyperparameters(dict(model.options)),
    )
    item.properties |= {
        "description": f"{spec.title}. Trained on: {training.data}.",
        "bigmap:upscale": spec.upscale,
        "bigmap:training": {**vars(training), "scores": dict(training.scores)},
    }
    asset = pystac.Asset(
        f"./{weights.name}", media_type="application/octet-stream", roles=["mlm:model", "data"]
    )
    item.add_asset("weights", asset)
    AssetGeneralMLMExtension.ext(asset).apply(artifact_type="safetensors.torch.save_file")
    FileExtension.ext(asset, add_if_missing=True).apply(
        size=weights.stat().st_size, checksum=checksum_file(weights)
    )
    return item


def _describe_input(model: MapModel) -> ModelInput:
    spec = model.spec
    statistics = next((m for m in model.modules() if isinstance(m, BandStatistics)), None)
    described = ModelInput.create(
        name="reflectance of the chosen dates",
        bands=[ModelBand.create(band) for band in spec.bands],
        input=InputStructure.create(
            shape=[-1, -1, len(spec.bands), -1, -1],
            dim_order=["batch", "time", "bands", "height", "width"],
            data_type=DataType.FLOAT32,
        ),
    )
    if statistics is not None:
        # One entry for each band, as the extension's text says; pystac's setter takes one only.
        described.properties["value_scaling"] = [
            ValueScaling.create(
                ValueScalingType.Z_SCORE, mean=float(mean), stddev=float(std)
            ).to_dict()
            for mean, std in zip(statistics.mean, statistics.std, strict=True)
        ]
    return described


def _describe_output(model: MapModel, tasks: list[TaskType]) -> ModelOutput:
    spec = model.spec
    channels = len(spec.legend) or sum(max(1, len(layer.channels)) for layer in spec.extra_layers)
    return ModelOutput.create(
        name="probability" if spec.legend else "image",
        tasks=tasks,
        result=ResultStructure.create(
            shape=[-1, channels, -1, -1],
            dim_order=["batch", "channel", "height", "width"],
            data_type=DataType.FLOAT32,
        ),
        classes=[
            Classification.create(
                value=entry.value,
                name=re.sub(r"[^0-9A-Za-z_-]", "_", entry.name),
                title=entry.name,
                color_hint=entry.colour[1:].upper(),
            )
            for entry in spec.legend
        ]
        or None,
    )


def _list_classes(legend: tuple[ClassEntry, ...]) -> list[str]:
    return [f"{entry.value} {entry.name}" for entry in legend]
