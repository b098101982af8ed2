"""The registry of models.

A package adds a model by an entry point of the group ``bigmap.models`` whose value is a
subclass of :class:`~bigmap.models.base.MapModel`; the entry point's name is the model's. The
keywords of its constructor are the options of the recipe's ``model``; where it takes ``bands`` or
``legend``, recipes may choose those too.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

import torch

from bigmap.errors import ModelError
from bigmap.models.base import (
    RANDOM,
    ClassEntry,
    MapModel,
    ModelSpec,
    NetworkModel,
    OptionValue,
)
from bigmap.models.card import read_card
from bigmap.models.checkpoint import load_weights
from bigmap.models.networks.bicubic import BicubicModel
from bigmap.models.networks.dbpn import DbpnModel
from bigmap.models.networks.dbpn_segnet import DbpnSegnetModel
from bigmap.models.networks.deeplab import DeepLabModel
from bigmap.models.networks.dual import DualModel
from bigmap.models.networks.highresnet import HighresnetModel
from bigmap.models.networks.hrnet import HrnetModel
from bigmap.models.networks.ndvi import NdviModel
from bigmap.models.networks.pipelines import SrHrnetModel
from bigmap.models.networks.piunet import PiunetModel
from bigmap.models.networks.segnet import SegnetModel
from bigmap.models.networks.small_conv import SmallConvModel
from bigmap.models.networks.spinet import SpinetModel
from bigmap.models.networks.srresnet import SrresnetModel

_BUILD_LOCK = threading.Lock()

BUILT_IN: dict[str, type[MapModel]] = {
    "bicubic": BicubicModel,
    "dbpn": DbpnModel,
    "dbpn-segnet": DbpnSegnetModel,
    "deeplabv3plus": DeepLabModel,
    "dual": DualModel,
    "highres-net": HighresnetModel,
    "hrnet": HrnetModel,
    "ndvi": NdviModel,
    "piunet": PiunetModel,
    "segnet": SegnetModel,
    "small-conv": SmallConvModel,
    "spinet": SpinetModel,
    "sr-hrnet": SrHrnetModel,
    "srresnet": SrresnetModel,
}


def list_models() -> dict[str, type[MapModel]]:
    """Return all models by name: our own, then those of installed packages."""
    return dict(sorted((BUILT_IN | _entry_points()).items()))


@lru_cache
def _entry_points() -> dict[str, type[MapModel]]:
    found: dict[str, type[MapModel]] = {}
    for point in entry_points(group="bigmap.models"):
        model = point.load()
        if not (inspect.isclass(model) and issubclass(model, MapModel)):
            raise ModelError(f"entry point {point.name} = {point.value} is not a MapModel class")
        found[point.name] = model
    return found


@dataclass(frozen=True)
class ModelChoice:
    """Which model with which settings: what a recipe says of it, hashable, without weights."""

    name: str
    options: tuple[tuple[str, OptionValue], ...] = ()
    bands: tuple[str, ...] | None = None
    """Common names; None for those of the paper."""
    legend: tuple[ClassEntry, ...] | None = None
    weights: str | None = None
    """A safetensors file."""
    pinned: str | None = None
    """What :attr:`ModelSpec.weights` must be, so that all parts of a map come from one model."""

    def build(self, *, seed: int = 0) -> MapModel:
        """Build the model in evaluation mode; see :func:`build_model`."""
        model = build_model(
            self.name,
            dict(self.options),
            bands=self.bands,
            legend=self.legend,
            weights=self.weights,
            seed=seed,
        )
        if self.pinned not in (None, model.spec.weights):
            raise ModelError(
                f"model.weights: {self.weights} was replaced since the run began; put the file "
                "back and go on with --resume, or start again with --overwrite"
            )
        return model


def build_model(
    name: str,
    options: Mapping[str, OptionValue] | None = None,
    *,
    bands: tuple[str, ...] | None = None,
    legend: tuple[ClassEntry, ...] | None = None,
    weights: str | None = None,
    seed: int = 0,
) -> MapModel:
    """Build a model in evaluation mode.

    Parameters
    ----------
    name, options, bands, legend
        As in a recipe. What is left out is the weights' or, without any, the paper's.
    weights
        A safetensors file with its card beside it.
    seed
        Of the random weights with which training starts.

    Raises
    ------
    ModelError
        If there is no such model, an option is unknown or wrong, or the weights do not fit.
    """
    options = dict(options or {})
    kind = find_model(name)
    if weights is not None:
        if not kind.has_weights:
            raise ModelError(f"model.weights: {name} has no weights; leave the field out")
        card = read_card(weights)
        card.refuse_options(name, options)
        taken = _list_settings(kind)
        options = {key: value for key, value in card.options.items() if key in taken} | options
        bands = bands or (card.bands if "bands" in taken else None)
        legend = legend or (card.legend if "legend" in taken else None)
    chosen = {"bands": bands, "legend": legend}
    model = _construct(name, kind, options, chosen, seed=seed)
    if weights is not None:
        card.refuse_other(model.spec)
        load_weights(model, weights)
        model.spec = replace(model.spec, weights=card.sha256)
        if card.training.is_simulated:
            notice = f"the weights of {name} were trained on simulated scenes."
            model.spec = replace(model.spec, notice=notice, is_simulated=True)
    elif isinstance(model, NetworkModel):
        notice = f"{name} has no weights: they are random, so its map means nothing."
        model.spec = replace(model.spec, notice=notice, weights=f"{RANDOM}{seed}")
    return model.eval()


def refuse_random(spec: ModelSpec, advice: str) -> None:
    """Refuse to make anything with a network that has learnt nothing.

    Parameters
    ----------
    spec
        Of the model.
    advice
        Where weights may come from, for the message.

    Raises
    ------
    ModelError
        If its weights are random.
    """
    if spec.is_random:
        raise ModelError(
            f"model.weights: {spec.name} has none, so that they are random and what it makes means "
            f"nothing; {advice}"
        )


def find_model(name: str) -> type[MapModel]:
    """Return the class of a model.

    Raises
    ------
    ModelError
        If there is none of that name.
    """
    models = list_models()
    if name not in models:
        raise ModelError(f"model.name: {name!r} is unknown; there are {', '.join(models)}")
    return models[name]


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
"""Of options, by the type of their default."""


def _construct(
    name: str,
    kind: type[MapModel],
    options: Mapping[str, OptionValue],
    chosen: Mapping[str, Any],
    *,
    seed: int,
) -> MapModel:
    settings: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    taken = _list_settings(kind)
    for setting in settings:
        if setting not in taken:
            raise ModelError(f"model.{setting} cannot be chosen for {name}; leave it out")
    known = [option for option in taken if option not in chosen]
    for option, value in options.items():
        if option not in known:
            raise ModelError(
                f"model.options.{option} is unknown to {name}; it has {', '.join(known) or 'none'}"
            )
        kind_of_value = type(taken[option].default)
        fits = type(value) is kind_of_value or (kind_of_value, type(value)) == (float, int)
        if kind_of_value in _KINDS and not fits:
            raise ModelError(f"model.options.{option}: is {_KINDS[kind_of_value]}, not {value!r}")
    try:
        # Random weights are the same in every process, so that workers agree. The threads of a
        # process share the generator.
        with _BUILD_LOCK, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = kind(**options, **settings)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        # PyTorch's own say RuntimeError, some over several lines.
        reason = str(error).partition("\n")[0]
        raise ModelError(f"model.options of {name}: {reason}") from None
    model.options = {option: options.get(option, taken[option].default) for option in known}
    return model


def _list_settings(kind: type[MapModel]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in parameters.items() if name != "self"}
