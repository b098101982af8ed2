"""Steps of networks that :mod:`bigmap.models.networks.compiled` does, on tensors and threads."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from bigmap.models.devices import run_threads

SLOPE = 0.01
"""Of leaky ReLU, PyTorch's."""
STRIP_PX = 65_536
"""About so many enlarged pixels have their coarse products in memory at once."""


def is_for_loops(features: Tensor) -> bool:
    """Tell whether compiled loops may stand for operations: on a CPU, float32, no gradients."""
    is_float32 = features.dtype == torch.float32
    return is_float32 and features.device.type == "cpu" and not torch.is_grad_enabled()


def attend(
    features: Tensor, *, look: Tensor, look_bias: Tensor, bring: Tensor, bring_bias: Tensor,
    skip: Tensor, activate: bool,
) -> None:  # fmt: skip
    """Let the dates of each pixel look at each other, in place.

    Parameters
    ----------
    features
        (date, channel, y, x) of one window, channels last.
    look, look_bias, bring, bring_bias, skip
        See :func:`bigmap.models.networks.compiled.attend`.
    activate
        Whether a leaky ReLU comes last.
    """
    pixels = _pixels(features)
    matrices = (look, look_bias, bring, bring_bias, skip)
    slope = np.float32(SLOPE if activate else 1)
    _run("attend", pixels, *matrices, slope, count=pixels.shape[1])


def add_gated(features: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """Return features + gate * change in the memory of ``change``.

    Parameters
    ----------
    features
        (date, channel, y, x).
    change
        The same, channels last.
    gate
        (date, channel).
    """
    pixels = _pixels(features.contiguous(memory_format=torch.channels_last))
    _run("add_gated", pixels, _pixels(change), gate, count=pixels.shape[1])
    return change


def filter_dates(features: Tensor, filters: Tensor) -> Tensor:
    """Filter each date of one window with its own kernel, and add the dates up.

    Parameters
    ----------
    features
        (date, channel, y, x).
    filters
        (date, 5, 5).

    Returns
    -------
    torch.Tensor
        (channel, y, x), channels last.
    """
    rows = features.permute(0, 2, 3, 1).contiguous()
    out = torch.empty(rows.shape[1:])
    _run("filter_dates", rows, filters, out, count=len(out))
    return out.permute(2, 0, 1)


def add_convolved(total: Tensor, coarse: Tensor, weight: Tensor) -> None:
    """Add the 3 x 3 convolution of an image that is enlarged bilinearly, without enlarging it.

    A convolution of an interpolation is the interpolation of products, of which there are fewer.

    Parameters
    ----------
    total
        (channel, y, x), channels last, which is added to.
    coarse
        (input channel, y / n, x / n), n a power of two.
    weight
        (9 * channel, input channel): rows of the kernel, columns, then channels.
    """
    rows, (height, width) = total.permute(1, 2, 0), total.shape[1:]
    scale = height // coarse.shape[1]
    step = max(scale, STRIP_PX // width // scale * scale)
    for first in range(0, height, step):
        last = min(first + step, height)
        start, stop = max(0, first // scale - 1), last // scale + 1
        products = coarse.permute(1, 2, 0)[start:stop] @ weight.mT
        _run("add_enlarged", rows, products, scale, start, count=last - first, origin=first)


def _pixels(features: Tensor) -> Tensor:
    dates, channels, height, width = features.shape
    return features.permute(0, 2, 3, 1).view(dates, height * width, channels)


def _run(name: str, *arguments: Tensor | np.float32 | int, count: int, origin: int = 0) -> None:
    """Share pixels, or rows, among the threads that PyTorch computes with."""
    if any(isinstance(each, FakeTensor) for each in arguments):
        return  # of a dry pass, which counts bytes and has no values
    arrays = [each.numpy() if isinstance(each, Tensor) else each for each in arguments]
    # The compiler takes half a second to import, which only predictions should wait for.
    from bigmap.models.networks import compiled  # noqa: PLC0415

    loop: Callable[..., None] = getattr(compiled, name)
    step = max(1, -(-count // torch.get_num_threads()))
    run_threads(
        [
            functools.partial(loop, *arrays, first, min(first + step, origin + count))
            for first in range(origin, origin + count, step)
        ]
    )
