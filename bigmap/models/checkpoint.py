"""Weights: safetensors with a card beside them, and PyTorch files of others, read safely."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bigmap.errors import ModelError
from bigmap.files import write_and_sync
from bigmap.models.base import MapModel
from bigmap.models.card import Training, find_weights, write_card
from bigmap.models.layers import BandStatistics

PYTORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
NESTED_KEYS = ("state_dict", "model_state_dict", "model")
"""Under which public training scripts keep the weights beside other things."""
LARGEST_WEIGHT = 1e18
"""A greater one overflows float32 as soon as it meets another of its size."""
_DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError,
    ArithmeticError, AssertionError, MemoryError, struct.error,
)  # fmt: skip
"""What readers raise on bytes that nobody wrote so."""


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
    write_and_sync(file, save(tensors))
    write_card(model, file, training or Training())


def read_pickle(path: str | Path) -> Any:
    """Read what ``torch.save`` has written, plain values and tensors; nothing in it is run.

    Raises
    ------
    ModelError
        If the file is damaged, holds objects of other kinds, or would unpack to more than it is.
    """
    file = Path(path)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                    raise ModelError(
                        f"{file}: is compressed, which torch.save never does, and could unpack to "
                        "any size; save it again"
                    )
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, *_DAMAGE):
        # Not in PyTorch's words, which tell how to run what is in the file.
        raise ModelError(
            f"{file}: cannot be read as plain weights, since it is damaged or holds other objects "
            "than tensors and plain values; save the model's state_dict() alone"
        ) from None


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
    if file.suffix not in PYTORCH_SUFFIXES:
        try:
            return load_file(file)
        except (SafetensorError, *_DAMAGE) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ModelError(f"{file}: is not a safetensors file ({reason})") from None
    content = read_pickle(file)
    for key in NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(_is_plain(v) for v in content.values()):
        raise ModelError(f"{file}: holds no named tensors; save the model's state_dict() alone")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _is_plain(value: object) -> bool:
    """Tell whether something is a tensor of numbers that lie in memory one by one."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_quantized or value.is_meta)
    )


def load_weights(model: MapModel, path: str | Path) -> None:
    """Load a model's own weights into it.

    Raises
    ------
    ModelError
        If :func:`check_tensors` refuses them.
    """
    try:
        tensors = read_tensors(find_weights(path))
        check_tensors(model, tensors, file=path)
    except ModelError as error:
        raise ModelError(f"model.weights: {error}") from None
    model.load_state_dict(tensors)


def check_tensors(model: MapModel, tensors: Mapping[str, Tensor], *, file: str | Path) -> None:
    """Refuse tensors with which a model would compute nothing, or nothing that is finite.

    Raises
    ------
    ModelError
        Naming the file and the first tensor that is missing, unknown, of another shape or dtype,
        not finite, too large for float32, or not positive where it is divided by.
    """
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        fault = _find_fault(tensors.get(name), expected.get(name), model.spec.name)
        if fault is not None:
            raise ModelError(f"{file}: tensor {name} {fault}")
    for name, module in model.named_modules():
        if isinstance(module, BandStatistics) and bool((tensors[f"{name}.std"] <= 0).any()):
            raise ModelError(f"{file}: tensor {name}.std holds a deviation that is not above 0")
        if isinstance(module, nn.BatchNorm2d) and bool((tensors[f"{name}.running_var"] < 0).any()):
            raise ModelError(f"{file}: tensor {name}.running_var holds a variance below 0")


def _find_fault(found: Tensor | None, expected: Tensor | None, model: str) -> str | None:
    if expected is None:
        return f"is unknown to {model} with these options, bands and classes"
    if found is None:
        return f"is missing, which {model} has"
    wanted, given = ((str(each.dtype), tuple(each.shape)) for each in (expected, found))
    if wanted != given:
        return f"does not fit {model}: it is {_describe(*given)}, not {_describe(*wanted)}"
    if not bool(found.isfinite().all()):
        return "holds NaN or infinity; these weights are spoilt, take others"
    if found.is_floating_point() and bool((found.abs() > LARGEST_WEIGHT).any()):
        return f"holds numbers above {LARGEST_WEIGHT:g}, which overflow; take other weights"
    return None


def _describe(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype.removeprefix('torch.')} of shape {shape}"
