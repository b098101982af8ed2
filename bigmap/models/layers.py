"""Parts that several networks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TYPICAL_STATISTICS = {
    "coastal": (0.0341, 0.0555),
    "blue": (0.0430, 0.0572),
    "green": (0.0614, 0.0583),
    "red": (0.0590, 0.0676),
    "rededge1": (0.0951, 0.0730),
    "rededge2": (0.1792, 0.1096),
    "rededge3": (0.2075, 0.1273),
    "nir": (0.2219, 0.1365),
    "nir08": (0.2266, 0.1356),
    "nir09": (0.2246, 0.1302),
    "swir16": (0.1594, 0.1079),
    "swir22": (0.1009, 0.0819),
}
"""Mean and standard deviation of reflectance over Europe, of the BigEarthNet archive (Sumbul et
al. 2019, doi:10.1109/IGARSS.2019.8900532). They stand in until training sets its own."""

CUBIC_A = -0.75
"""Keys' parameter; -0.75 is what PyTorch, OpenCV and Pillow's users know as bicubic."""


class BandStatistics(nn.Module):
    """Standardises each band with the statistics of the data set, never those of a window.

    Parameters
    ----------
    bands
        Common names; one without typical statistics starts with mean 0 and deviation 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, bands: Sequence[str]) -> None:
        super().__init__()
        pairs = torch.tensor([TYPICAL_STATISTICS.get(band, (0.0, 1.0)) for band in bands])
        self.register_buffer("mean", pairs[:, 0].clone())
        self.register_buffer("std", pairs[:, 1].clone())

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the statistics of a data set, in reflectance."""
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std))

    def forward(self, reflectance: Tensor) -> Tensor:
        """Standardise reflectance (..., band, y, x)."""
        return (reflectance - self.mean[:, None, None]).div_(self.std[:, None, None])

    def restore(self, values: Tensor) -> Tensor:
        """Turn standardised values (..., band, y, x) back into reflectance."""
        return values * self.std[:, None, None] + self.mean[:, None, None]


class ConvNorm(nn.Module):
    """A convolution and its batch normalisation, which become one convolution for inference."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(
            fan_in, fan_out, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias
        )
        self.norm: nn.Module = nn.BatchNorm2d(fan_out)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve and normalise (batch, channel, y, x)."""
        normalised: Tensor = self.norm(self.conv(features))
        return normalised

    def fold(self) -> None:
        """Multiply the normalisation into the convolution; only in evaluation mode."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


@runtime_checkable
class Foldable(Protocol):
    """A module with a normalisation that can become part of a product beside it."""

    def fold(self) -> None:
        """Do so; only in evaluation mode."""


def fold_norms(model: nn.Module) -> None:
    """Fold every :class:`Foldable` module of a model in evaluation mode."""
    for module in model.modules():
        if isinstance(module, Foldable):
            module.fold()


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def count_weight_bytes(model: nn.Module) -> int:
    """Return the size of all parameters and buffers."""
    return sum(each.nbytes for each in [*model.parameters(), *model.buffers()])


def sum_over_dates(values: Tensor, dates: Tensor) -> Tensor:
    """Add up valid dates one by one, (batch, time, ...) to (batch, ...).

    A reduction over an axis may change its order with the shape of the window, and with it the
    last bit; this does not. What padded dates hold, even NaN, changes nothing.
    """
    mask = dates.view(*dates.shape, *[1] * (values.ndim - 2))
    total = torch.zeros_like(values[:, 0])
    for date in torch.where(mask, values, 0).unbind(1):
        total = total + date
    return total


def mean_over_dates(values: Tensor, dates: Tensor) -> Tensor:
    """Average the valid dates, (batch, time, ...) to (batch, ...)."""
    count = dates.sum(dim=1).clamp(min=1).view(-1, *[1] * (values.ndim - 2))
    return sum_over_dates(values, dates) / count


def upsample_bicubic(values: Tensor, upscale: int) -> Tensor:
    """Interpolate bicubically (Keys 1981, a = -0.75), pixel areas kept aligned.

    Equal to ``torch.nn.functional.interpolate(mode="bicubic")`` up to rounding, but each output
    pixel is the same sum of the same products wherever its window starts, so that values do not
    depend on the window. Edges are replicated.

    Parameters
    ----------
    values
        float32, (..., y, x).
    upscale
        Output pixels per input pixel.

    Returns
    -------
    torch.Tensor
        float32, (..., y * upscale, x * upscale).
    """
    return _upsample_rows(_upsample_rows(values, upscale).mT, upscale).mT.contiguous()


def _upsample_rows(values: Tensor, upscale: int) -> Tensor:
    height = values.shape[-2]
    first, last = values[..., :1, :], values[..., -1:, :]
    padded = torch.cat([first, first, values, last, last], dim=-2)
    phases = []
    for phase in range(upscale):
        position = (phase + 0.5) / upscale - 0.5
        start = -2 if position < 0 else -1
        taps = [_cubic_weight(position - (start + tap)) for tap in range(4)]
        shifted = [padded[..., start + tap + 2 : start + tap + 2 + height, :] for tap in range(4)]
        phases.append(
            shifted[0] * taps[0] + shifted[1] * taps[1]
            + shifted[2] * taps[2] + shifted[3] * taps[3]
        )  # fmt: skip
    stacked = torch.stack(phases, dim=-2)
    return stacked.reshape(*values.shape[:-2], height * upscale, values.shape[-1])


def _cubic_weight(distance: float) -> float:
    t = abs(distance)
    if t <= 1:
        return (CUBIC_A + 2) * t**3 - (CUBIC_A + 3) * t**2 + 1
    if t < 2:
        return CUBIC_A * (t**3 - 5 * t**2 + 8 * t - 4)
    return 0.0
