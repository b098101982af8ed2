"""The models that stand beside each other in a table: the recipe's own and baselines."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from bigmap.config import Recipe
from bigmap.config.strict_yaml import parse_yaml
from bigmap.errors import ModelError
from bigmap.learning.chips import ChipTemplate
from bigmap.models import MapModel, ModelSpec, OptionValue, build_model, read_card
from bigmap.models import find_model as find_kind
from bigmap.models.choosing import choose_model, use_trained_weights

WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Contender:
    """A model with its name in tables."""

    label: str
    model: MapModel

    @property
    def spec(self) -> ModelSpec:
        """What the model needs and gives."""
        return self.model.spec


def build_contender(recipe: Recipe, weights: str | None = None) -> Contender:
    """Build the model that a recipe is about.

    Parameters
    ----------
    weights
        A safetensors file in place of ``model.weights``; by default that, and where the recipe has
        none the file that ``bigmap train`` has written to ``training.weights``.

    Raises
    ------
    BigmapError
        If the model cannot be built, or the weights are not its own.
    """
    choice = choose_model(use_trained_weights(recipe).model)
    return Contender(recipe.model.name, replace(choice, weights=weights or choice.weights).build())


def build_baseline(text: str, like: ModelSpec, template: ChipTemplate) -> Contender:
    """Build a baseline.

    Parameters
    ----------
    text
        ``NAME`` or ``NAME:option=value,...``; the name is that of a model or of a weights file, and
        among the options ``weights`` names one too. The text is its name in tables.
    like
        Of the model it stands beside. Where a baseline without weights may have bands, a legend or
        an ``upscale`` and the text does not say, it takes those.
    template
        Of the chips; a baseline that makes an image takes the bands of their target.

    Raises
    ------
    ModelError
        If the text is not of this form, or there is no such model or option.
    """
    name, _, rest = text.partition(":")
    options = _parse_options(rest, text)
    weights = options.pop("weights", None)
    if name.endswith(WEIGHTS_SUFFIX):
        weights, name = name, read_card(name).name
    if weights is not None:
        return Contender(text, build_model(name, options, weights=str(weights)))
    settings = inspect.signature(find_kind(name).__init__).parameters
    more: dict[str, Any] = {}
    if "upscale" in settings:
        options.setdefault("upscale", like.upscale)
    if "legend" in settings and like.legend:
        more["legend"] = like.legend
    if "bands" in settings:
        is_image = "legend" not in settings and template.target_bands
        more["bands"] = template.target_bands if is_image else like.bands
    try:
        return Contender(text, build_model(name, options, **more))
    except ModelError as error:
        raise ModelError(f"--baseline {text}: {error}") from None


def _parse_options(rest: str, text: str) -> dict[str, OptionValue]:
    options: dict[str, OptionValue] = {}
    for setting in filter(None, rest.split(",")):
        key, separator, given = setting.partition("=")
        value = parse_yaml(given, origin=f"--baseline {text}")
        if not (separator and key and isinstance(value, bool | int | float | str)):
            raise ModelError(
                f"--baseline {text!r}: write it as NAME:option=value,option=value; {setting!r} is "
                "no option"
            )
        options[key] = value
    return options
