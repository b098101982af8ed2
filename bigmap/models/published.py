"""Weights that others have published, turned into ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from bigmap.errors import ModelError
from bigmap.models import build_model
from bigmap.models.base import OptionValue
from bigmap.models.card import Training
from bigmap.models.checkpoint import read_tensors, save_weights
from bigmap.models.importing import import_highresnet, import_piunet

IMPORTERS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "highres-net": import_highresnet,
    "piunet": import_piunet,
}
"""Turn the published names of a network's tensors into ours."""


def import_weights(
    name: str,
    file: Path,
    out: Path,
    *,
    options: Mapping[str, OptionValue],
    bands: tuple[str, ...] | None = None,
    data: str = "unknown",
) -> None:
    """Write published weights as ours, with a card.

    Parameters
    ----------
    name
        The model. One without published names takes a file with the names of our own network.
    file
        PyTorch or safetensors file; nothing in it is run.
    out
        Ends in ``.safetensors``.
    options, bands
        Of the model, as in a recipe.
    data
        What the weights were trained on, for the card.

    Raises
    ------
    ModelError
        If the file cannot be read or does not hold the network's tensors.
    """
    model = build_model(name, options, bands=bands)
    network = getattr(model, "network", model)
    if not isinstance(network, nn.Module) or not model.has_weights:
        raise ModelError(f"{name} has no weights, so none can be imported")
    tensors = read_tensors(file)
    if name in IMPORTERS:
        tensors = IMPORTERS[name](tensors)
    expected = network.state_dict()
    for key in sorted(set(expected) | set(tensors)):
        found = tensors.get(key)
        if found is None or key not in expected or found.shape != expected[key].shape:
            shapes = [tuple(x.shape) if x is not None else None for x in (found, expected.get(key))]
            raise ModelError(
                f"{file}: tensor {key} has shape {shapes[0]}, but {name} with these options and "
                f"bands has {shapes[1]}"
            )
    network.load_state_dict(tensors)
    save_weights(model, out, training=Training(data=data, source=file.name))
