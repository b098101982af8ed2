"""Published checkpoints: their tensors under our names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from bigmap.errors import ModelError

_LEAVES = {
    "conv": {"weight": "weight", "bias": "bias"},
    "norm": {
        name: name
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    },
    "attention": {
        "in_proj_weight": "in_proj.weight",
        "in_proj_bias": "in_proj.bias",
        "out_proj.weight": "out_proj.weight",
        "out_proj.bias": "out_proj.bias",
    },
}
"""Tensors of a published module, and what they are called in ours."""

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


def import_piunet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published PIUnet checkpoint, at any number of channels and TEFA units.

    Its names are those of github.com/diegovalsesia/piunet, whose convolutions over (time, y, x)
    have kernels (1, 3, 3); ours are over (y, x). The checkpoint does not hold the mean and
    deviation its images were standardised with: set them as the model's statistics.

    Parameters
    ----------
    state
        The checkpoint's state dict.

    Returns
    -------
    dict of str to torch.Tensor
        State dict of :class:`bigmap.models.networks.piunet.PIUnet`, for its ``load_state_dict``.

    Raises
    ------
    ModelError
        If a tensor is missing, or one is there that the published network does not have.
    """
    names: dict[str, str] = {}
    units = 1 + max((int(key.split(".")[1]) for key in state if _is_unit(key)), default=-1)
    for theirs, ours, kind in _list_piunet_modules(units):
        names |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _LEAVES[kind].items()}
    check_keys(state, names, "PIUnet")
    return {ours: _drop_time_axis(state[theirs]) for theirs, ours in names.items()}


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
        State dict of :class:`bigmap.models.networks.highresnet.HighResNet`, for its
        ``load_state_dict``.

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


def _is_unit(key: str) -> bool:
    parts = key.split(".")
    return parts[0] == "res" and len(parts) > 1 and parts[1].isdecimal()


def _list_piunet_modules(units: int) -> Iterator[tuple[str, str, str]]:
    """Yield the published name, our name and the kind of each module."""
    yield from _rename_block("", ("conv_in", "norm00", "tran_in", "norm0"), "backbone.first")
    for unit in range(units):
        theirs, ours = f"res.{unit}.", f"backbone.units.{unit}"
        yield from _rename_block(theirs, ("conv0", "norm00", "tran0", "norm0"), f"{ours}.first")
        yield from _rename_block(theirs, ("conv1", "norm11", "tran1", "norm1"), f"{ours}.second")
        yield f"{theirs}lin0", f"{ours}.gate.squeeze", "conv"
        yield f"{theirs}lin1", f"{ours}.gate.excite", "conv"
    yield from _rename_block("", ("conv_mid", "norm11", "tran_mid", "norm1"), "backbone.middle")
    ours = "backbone.registration.estimator"
    yield from _rename_block("regnet.", ("conv0", "norm00", "tran0", "norm0"), f"{ours}.block")
    yield "regnet.conv1", f"{ours}.project", "conv"
    yield "conv_d2s_mu", "image", "conv"
    yield "conv_d2s_sigma", "scale_features.conv", "conv"
    yield "norm_sigma", "scale_features.norm", "norm"
    yield "conv_out_sigma", "log_scale", "conv"


def _rename_block(
    prefix: str, modules: tuple[str, str, str, str], ours: str
) -> Iterator[tuple[str, str, str]]:
    """Yield the modules of a temporal block: convolution, its norm, attention, its norm."""
    parts = ("convolution.conv", "convolution.norm", "attention", "norm")
    kinds = ("conv", "norm", "attention", "norm")
    for module, part, kind in zip(modules, parts, kinds, strict=True):
        yield f"{prefix}{module}", f"{ours}.{part}", kind


def _drop_time_axis(tensor: Tensor) -> Tensor:
    """Turn kernels (out, in, 1, y, x) into (out, in, y, x), and (out, in, 1) into (out, in)."""
    return tensor.squeeze(2) if tensor.ndim in (3, 5) and tensor.shape[2] == 1 else tensor
