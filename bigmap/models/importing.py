"""Published checkpoints: their tensors under our names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bigmap.errors import ModelError

_HIGHRESNET_LAYERS = {
    "encode.init_layer.0": "encoder.0",
    "encode.init_layer.1": "encoder.1",
    "encode.res_layers.0.block.0": "encoder.2.body.0",
    "encode.res_layers.0.block.1": "encoder.2.body.1",
    "encode.res_layers.0.block.2": "encoder.2.body.2",
    "encode.res_layers.0.block.3": "encoder.2.body.3",
    "encode.res_layers.1.block.0": "encoder.3.body.0",
    "encode.res_layers.1.block.1": "encoder.3.body.1",
    "encode.res_layers.1.block.2": "encoder.3.body.2",
    "encode.res_layers.1.block.3": "encoder.3.body.3",
    "encode.final.0": "encoder.4",
    "fuse.fuse.0.block.0": "fusion.0.body.0",
    "fuse.fuse.0.block.1": "fusion.0.body.1",
    "fuse.fuse.0.block.2": "fusion.0.body.2",
    "fuse.fuse.0.block.3": "fusion.0.body.3",
    "fuse.fuse.1": "fusion.1",
    "fuse.fuse.2": "fusion.2",
    "decode.deconv.0": "decoder.0",
    "decode.deconv.1": "decoder.1",
    "decode.final": "decoder.2",
}
"""Layers of the published HighRes-net and of ours."""
_HIGHRESNET_SLOPES = ("encoder.1", "body.1", "body.3", "fusion.2", "decoder.1")
"""PReLUs of ours, which have a weight and no bias."""


def import_highresnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published HighRes-net checkpoint, for any number of bands.

    Its names are those of github.com/ServiceNow/HighRes-net. Its network has one band, upscale 3
    and no sigmoid, and was trained on images scaled to 0 to 1, not standardised: set the model's
    statistics to mean 0 and deviation 1 in the units of its images.

    Parameters
    ----------
    state
        The checkpoint's state dict.

    Returns
    -------
    dict of str to torch.Tensor
        State dict of :class:`bigmap.models.highresnet.HighResNet`, for its ``load_state_dict``.

    Raises
    ------
    ModelError
        If a tensor is missing, or one is there that the published network does not have.
    """
    names = {
        f"{theirs}.{leaf}": f"{ours}.{leaf}"
        for theirs, ours in _HIGHRESNET_LAYERS.items()
        for leaf in (("weight",) if ours.endswith(_HIGHRESNET_SLOPES) else ("weight", "bias"))
    }
    check_keys(state, names, "HighRes-net")
    return {ours: state[theirs] for theirs, ours in names.items()}


def check_keys(state: Mapping[str, Tensor], expected: Mapping[str, str], network: str) -> None:
    """Refuse a checkpoint with tensors too many or too few.

    Raises
    ------
    ModelError
        Naming the first missing or unknown tensor.
    """
    for problem, keys in (
        ("lacks the tensor", expected.keys() - state.keys()),
        ("has the unknown tensor", state.keys() - expected.keys()),
    ):
        if keys:
            raise ModelError(
                f"the checkpoint {problem} {min(keys)}; it is not a published {network}"
            )
