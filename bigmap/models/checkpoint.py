"""Weights: safetensors with a card beside them, and PyTorch files of others, read safely."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bigmap.errors import ModelError
from bigmap.models.base import MapModel
from bigmap.models.card import Training, find_weights, write_card

PYTORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
NESTED_KEYS = ("state_dict", "model_state_dict", "model")
"""Under which public training scripts keep the weights beside other things."""


def save_weights(model: MapModel, path: str | Path, *, training: Training | None = None) -> None:
    """Write a model's weights as safetensors, and their card beside them.

    Parameters
    ----------
    path
        Ends in ``.safetensors``; the card has the same name and ends in ``.json``.
    training
        What is known of how the weights came to be.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise ModelError(f"{file}: weights are written to a file that ends in .safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Not by save_file, whose files nobody else may read, whatever the umask.
    file.write_bytes(save(tensors))
    write_card(model, file, training or Training())


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors from a safetensors or PyTorch file, which never runs code from it.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or holds anything but named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{file}: no such file")
    try:
        if file.suffix not in PYTORCH_SUFFIXES:
            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: is not a safetensors file ({error})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{file}: cannot be read as plain weights ({reason})") from None
    for key in NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{file}: holds no named tensors; save the model's state_dict() alone")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def load_weights(model: MapModel, path: str | Path) -> None:
    """Load a model's own weights into it.

    Raises
    ------
    ModelError
        If a tensor is missing, unknown or of another shape.
    """
    try:
        tensors = read_tensors(find_weights(path))
    except ModelError as error:
        raise ModelError(f"model.weights: {error}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise ModelError(f"model.weights: {path}: tensor {wrong} does not fit {model.spec.name}")
    model.load_state_dict(tensors)
