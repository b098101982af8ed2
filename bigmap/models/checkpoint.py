"""Weights as safetensors with a card that says which model they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bigmap.errors import ModelError
from bigmap.models.base import MapModel

CARD_KEY = "bigmap"


def card_of(model: MapModel) -> dict[str, Any]:
    """Return the facts that weights and model must agree on."""
    spec = model.spec
    return {
        "model": spec.name,
        "bands": list(spec.bands),
        "upscale": spec.upscale,
        "classes": [entry.name for entry in spec.legend],
    }


def save_weights(model: MapModel, path: str | Path) -> None:
    """Write a model's weights and card as safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, str(path), metadata={CARD_KEY: json.dumps(card_of(model))})


def load_weights(model: MapModel, path: str | Path) -> None:
    """Load weights into a model, if their card says that they are its own.

    Raises
    ------
    ModelError
        If the file is missing, is not safetensors, has no card, or belongs to a model with
        another name, band order, upscale or legend.
    """
    if not Path(path).is_file():
        raise ModelError(f"model.weights: {path}: no such file")
    if not model.state_dict():
        raise ModelError(f"model.weights: {model.spec.name} has no weights; leave the field out")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(CARD_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model.weights: {path}: is not a safetensors file ({error})") from None
    if text is None:
        raise ModelError(f"model.weights: {path}: has no model card, so its bands are unknown")
    card = json.loads(text)
    for field, wanted in card_of(model).items():
        if card.get(field) != wanted:
            raise ModelError(
                f"model.weights: {path}: is for {field} {card.get(field)}, but the recipe's model "
                f"has {wanted}"
            )
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise ModelError(f"model.weights: {path}: tensor {wrong} does not fit {model.spec.name}")
    model.load_state_dict(tensors)
