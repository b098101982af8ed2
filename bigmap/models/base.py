"""The contract between a model and everything that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bigmap.models.layers import BandStatistics

ModelKind = Literal["exact", "windowed", "large-field"]
OptionValue = bool | int | float | str

RANDOM = "random, seed "
NODATA_CLASS = 255


@dataclass(frozen=True)
class ClassEntry:
    """One class of a legend."""

    value: int
    """Value in the map, 0 to 254."""
    name: str
    colour: str
    """``#rrggbb``."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a map: how a model's scores are stored."""

    name: str
    long_name: str
    dtype: Literal["uint8", "int16", "uint16"]
    nodata: int
    scale: float = 1.0
    offset: float = 0.0
    """A stored value means ``scale * value + offset``."""
    units: str = "1"
    channels: tuple[str, ...] = ()
    """Names along a leading axis; empty for a layer (y, x)."""
    by_default: bool = True
    """Whether a map has the layer where the recipe names none."""

    def describe(self, legend: tuple[ClassEntry, ...]) -> dict[str, Any]:
        """Return the CF attributes of the layer; classes carry the legend."""
        if self.name == CLASS.name:
            return {
                "long_name": self.long_name,
                "flag_values": [entry.value for entry in legend],
                "flag_meanings": " ".join(entry.name.replace(" ", "_") for entry in legend),
                "flag_colors": " ".join(entry.colour for entry in legend),
            }
        attributes: dict[str, Any] = {"long_name": self.long_name, "units": self.units}
        if (self.scale, self.offset) != (1.0, 0.0):
            attributes |= {"scale": self.scale, "offset": self.offset}
        if legend and self.name in (CONFIDENCE.name, OBSERVATIONS.name):
            attributes["ancillary_to"] = CLASS.name
        return attributes

    def quantise(self, values: Tensor) -> Tensor:
        """Round values to stored ones, within the range of the dtype, never to nodata.

        Parameters
        ----------
        values
            float32, any shape.

        Returns
        -------
        torch.Tensor
            int32, same shape.
        """
        low, high = {"uint8": (0, 254), "int16": (-32767, 32767), "uint16": (1, 65535)}[self.dtype]
        return ((values - self.offset) / self.scale).round().clamp(low, high).to(torch.int32)


CONFIDENCE = LayerSpec("confidence", "Probability of the class", "uint8", 255, units="percent")
OBSERVATIONS = LayerSpec("observations", "Clear dates the value rests on", "uint8", 255)
CLASS = LayerSpec("class", "Class", "uint8", NODATA_CLASS)


def probability_layer(legend: tuple[ClassEntry, ...]) -> LayerSpec:
    """Return the layer of the probabilities of all classes, which recipes ask for by name."""
    return LayerSpec(
        "probability", "Probability of each class", "uint8", 255, units="percent",
        channels=tuple(entry.name for entry in legend), by_default=False,
    )  # fmt: skip


def image_layer(bands: tuple[str, ...]) -> LayerSpec:
    """Return the layer of a super-resolved image: reflectance as Sentinel-2's products hold it."""
    return LayerSpec(
        "image", "Super-resolved reflectance", "uint16", 0, scale=1e-4, offset=-0.1, channels=bands
    )


def uncertainty_layer(bands: tuple[str, ...]) -> LayerSpec:
    """Return the layer of an image's uncertainty: the scale of its error, in reflectance."""
    return LayerSpec(
        "uncertainty", "Expected error of the image", "uint16", 0, scale=1e-5, channels=bands
    )


@dataclass(frozen=True)
class ModelSpec:
    """What a model needs, gives, and how it may be cut into windows."""

    name: str
    title: str
    bands: tuple[str, ...]
    """Common names of the input bands, in the order of the band axis."""
    upscale: int
    """Output pixels per input pixel, along each axis."""
    halo_px: int
    """Context that an output pixel depends on, in input pixels on each side."""
    kind: ModelKind
    """``exact``: no operation looks at the whole window, and the halo covers the receptive field.
    ``windowed``: the result is defined by the window. ``large-field``: the halo is shorter than
    the receptive field, within a declared tolerance."""
    legend: tuple[ClassEntry, ...] = ()
    """Classes in the order of the channels of ``probability``; empty for image models."""
    extra_layers: tuple[LayerSpec, ...] = ()
    """Layers beside class, confidence and observations; their scores have the layers' names."""
    multiple_px: int = 1
    """Windows start at and measure multiples of this, in input pixels."""
    notice: str | None = None
    """What a user must know before trusting the map."""
    weights: str | None = None
    """``sha256:...`` of the file they came from, or ``random, seed N``; None where it has none."""
    is_simulated: bool = False
    """Whether its weights were trained on simulated scenes."""
    paper: str = ""
    """Author and year of the paper that describes the model."""
    max_dates: int | None = None
    """The greatest number of dates that the halo holds for; None where any number does."""
    tolerance: float = 0.0
    """Large-field models: how far scores (probability, or reflectance) of a window may lie from
    those of the whole image, as the mean absolute difference over the core."""

    @property
    def is_random(self) -> bool:
        """Whether nothing was ever learnt: its weights are those with which training starts."""
        return self.weights is not None and self.weights.startswith(RANDOM)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """All layers the model can write."""
        classes = (CLASS, CONFIDENCE) if self.legend else ()
        return (*classes, OBSERVATIONS, *self.extra_layers)

    @property
    def default_layers(self) -> tuple[LayerSpec, ...]:
        """The layers of a map whose recipe names none."""
        return tuple(layer for layer in self.layers if layer.by_default)


class MapModel(nn.Module, ABC):
    """A network, or a rule, that turns dates of a window into scores."""

    spec: ModelSpec
    has_weights: ClassVar[bool] = True
    """False for a rule, which nothing can be loaded into."""
    heap_share: ClassVar[float] = 1.85
    """What a worker's heap takes for each byte of tensors in a pass; the rest lies in holes between
    tensors of many sizes. Measured by ``python -m benchmarks memory``: 1.2 to 1.85 for most."""
    options: Mapping[str, OptionValue] = MappingProxyType({})
    """All options with their values, set by the registry."""

    @property
    def mean_reflectance(self) -> Tensor:
        """What a pixel that is clear on no date holds, (band,): the mean of the data set.

        It stands out least. A rule, which knows no mean, takes 0.
        """
        for module in self.modules():
            if isinstance(module, BandStatistics):
                return module.mean
        return torch.zeros(len(self.spec.bands))

    @abstractmethod
    def forward(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> Mapping[str, Tensor]:
        """Score windows.

        Parameters
        ----------
        reflectance
            float32, (batch, time, band, y, x), finite everywhere: a pixel without data holds the
            mean of its clear dates, or :attr:`mean_reflectance` where it has none.
        dates
            bool, (batch, time): false for a date that only pads the batch; it must change
            nothing.
        clear
            bool, (batch, time, y, x): pixels with data and without cloud; false in padded dates.

        Returns
        -------
        mapping of str to torch.Tensor
            float32, (batch, channel, y * upscale, x * upscale): ``probability``, one channel per
            class of the legend summing to one, where there is a legend; and one entry for each
            of ``spec.extra_layers``.
        """


class NetworkModel(MapModel):
    """A trained network. Losses need its raw outputs, maps the scores made of them.

    Subclasses take the keyword ``size`` (``full`` or ``small``), and where the paper's choice may
    be changed ``bands`` (common names) and ``legend`` (:class:`ClassEntry`), beside options of
    their own.
    """

    @abstractmethod
    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Run the network on windows; parameters as in :meth:`MapModel.forward`.

        Returns
        -------
        dict of str to torch.Tensor
            (batch, channel, y * upscale, x * upscale): ``logits``, one channel per class, or a
            single one where the legend has two; ``image`` and others in the units of their layers
            (reflectance). More entries, of any shape, may serve a loss.
        """

    def forward(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> Mapping[str, Tensor]:
        """Score windows; see :meth:`MapModel.forward`."""
        outputs = self.compute(reflectance, dates, clear)
        names = {layer.name for layer in self.spec.extra_layers} & set(outputs)
        scores = {name: outputs[name].float() for name in sorted(names)}
        if self.spec.legend:
            scores["probability"] = probability_of(outputs["logits"])
        return scores


def probability_of(logits: Tensor) -> Tensor:
    """Return probabilities (batch, class, y, x), float32; one logit is that of the second class.

    Computed in float64: PyTorch's float32 exponential differs in its last bit between vectorised
    and other elements, so that a value would depend on its place in memory.
    """
    logits = logits.double()
    if logits.shape[1] == 1:
        second = torch.sigmoid(logits)
        return torch.cat([1 - second, second], dim=1).float()
    return torch.softmax(logits, dim=1).float()
