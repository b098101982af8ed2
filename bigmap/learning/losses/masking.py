"""What all losses share: sums that leave invalid pixels out, forwards and backwards."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def widen(values: Tensor) -> Tensor:
    """Turn half precision into float32; float32 and float64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def keep_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Set invalid pixels of (batch, channel, y, x) to 0, where (batch, y, x) is False.

    This goes before any arithmetic: a NaN that is only left out of the sum afterwards would still
    reach the gradients, because 0 * NaN is NaN.
    """
    _check_mask(values, valid)
    return torch.where(valid[:, None], widen(values), 0)


def mean_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Average (batch, channel, y, x) over channels and valid pixels (batch, y, x); 0 of nothing."""
    _check_mask(values, valid)
    total = torch.where(valid[:, None], values, 0).sum()
    return total / (valid.sum() * values.shape[1]).clamp(min=1)


def erode_mask(valid: Tensor, radius_px: int) -> Tensor:
    """Keep the pixels whose whole square neighbourhood is valid.

    Parameters
    ----------
    valid
        bool, (batch, y, x).
    radius_px
        Half the side of the neighbourhood, its centre left out.

    Returns
    -------
    torch.Tensor
        bool, (batch, y, x); False within ``radius_px`` of the image's edge.
    """
    padded = F.pad((~valid)[:, None].float(), [radius_px] * 4, value=1.0)
    spoilt = F.max_pool2d(padded, 2 * radius_px + 1, stride=1)
    return spoilt[:, 0] == 0


def _check_mask(values: Tensor, valid: Tensor) -> None:
    if valid.dtype != torch.bool or valid.shape != (values.shape[0], *values.shape[2:]):
        raise ValueError(
            f"valid is {valid.dtype} {tuple(valid.shape)}; values of {tuple(values.shape)} need "
            "bool (batch, y, x)"
        )
