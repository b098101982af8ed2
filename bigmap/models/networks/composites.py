"""One image of many dates, for networks that see a single one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmap.models.layers import mean_over_dates

CLEAREST_RADIUS_PX = 8
"""Half the box in which ``clearest`` counts clear pixels; our choice: 170 m across at 10 m."""

COMPOSITE_HALO_PX = {"mean": 0, "median": 0, "clearest": CLEAREST_RADIUS_PX}
"""Context of a composite's pixel, which a model adds to its own halo."""


def check_composite(how: str) -> None:
    """Raise ``ValueError`` unless there is such a composite."""
    if how not in COMPOSITE_HALO_PX:
        raise ValueError(f"composite {how!r} is unknown; there are {', '.join(COMPOSITE_HALO_PX)}")


def compose(reflectance: Tensor, dates: Tensor, clear: Tensor, how: str) -> Tensor:
    """Make one image of the clear dates of each pixel.

    A pixel that is clear on no date takes the mean of its valid dates, clouds and all, or 0
    where no date is valid. No value depends on where the window starts.

    Parameters
    ----------
    reflectance
        float32, (batch, time, band, y, x), finite in valid dates.
    dates
        bool, (batch, time); what other dates hold changes nothing, NaN included.
    clear
        bool, (batch, time, y, x).
    how
        ``mean``, ``median`` (of each band; of an even number of dates the mean of the two in the
        middle) or ``clearest``: the clear date with the most clear pixels in the box of
        17 x 17 px around the pixel, of equal ones the earliest. The last is our choice; it looks
        ``CLEAREST_RADIUS_PX`` far, and counts nothing beyond the window.

    Returns
    -------
    torch.Tensor
        float32, (batch, band, y, x).

    Raises
    ------
    ValueError
        If ``how`` is none of the three.
    """
    check_composite(how)
    clear = clear & dates[:, :, None, None]
    makers = {"mean": _average, "median": _find_median, "clearest": _pick_clearest}
    image = makers[how](reflectance, clear)
    seen = clear.any(dim=1).unsqueeze(1)
    return torch.where(seen, image, mean_over_dates(reflectance, dates))


def _average(reflectance: Tensor, clear: Tensor) -> Tensor:
    # Date by date: the order of a reduction may change with the window's shape.
    total = torch.zeros_like(reflectance[:, 0])
    for values, mask in zip(reflectance.unbind(1), clear.unbind(1), strict=True):
        total = total + torch.where(mask.unsqueeze(1), values, 0)
    return total / clear.sum(dim=1).clamp(min=1).unsqueeze(1)


def _find_median(reflectance: Tensor, clear: Tensor) -> Tensor:
    # Adding 0 turns -0 into 0, which a sort may put on either side of it.
    values = torch.where(clear.unsqueeze(2), reflectance + 0.0, torch.inf).sort(dim=1).values
    count = clear.sum(dim=1).clamp(min=1)[:, None, None].expand_as(values[:, :1])
    lower = values.gather(1, (count - 1) // 2)
    upper = values.gather(1, count // 2)
    return torch.where(count % 2 == 1, lower, (lower + upper) / 2).squeeze(1)


def _pick_clearest(reflectance: Tensor, clear: Tensor) -> Tensor:
    best = torch.full_like(reflectance[:, :1, 0], -1)
    image = torch.zeros_like(reflectance[:, 0])
    scores = torch.where(clear, count_around(clear), -1)
    for score, values in zip(scores.unbind(1), reflectance.unbind(1), strict=True):
        better = score.unsqueeze(1) > best
        best = torch.where(better, score.unsqueeze(1), best)
        image = torch.where(better, values, image)
    return image


def count_around(clear: Tensor) -> Tensor:
    """Count clear pixels in the box around each pixel; float32 holds such numbers exactly."""
    radius, size = CLEAREST_RADIUS_PX, 2 * CLEAREST_RADIUS_PX + 1
    rows = F.avg_pool2d(
        clear.float(), (size, 1), stride=1, padding=(radius, 0), divisor_override=1
    )  # fmt: skip
    return F.avg_pool2d(rows, (1, size), stride=1, padding=(0, radius), divisor_override=1)
