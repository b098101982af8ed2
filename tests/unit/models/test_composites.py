"""Composites against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bigmap.models.networks.composites import CLEAREST_RADIUS_PX, COMPOSITE_HALO_PX, compose

SEED = 3


def make_stack(
    times: int = 6, height: int = 23, width: int = 30, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    reflectance = torch.rand(batch, times, 3, height, width, generator=generator)
    clear = torch.rand(batch, times, height, width, generator=generator) < 0.5
    clear[:, :, 4:6, 7] = False  # never clear
    return reflectance, torch.ones(batch, times, dtype=torch.bool), clear


def count_box(mask: np.ndarray, y: int, x: int) -> int:
    radius = CLEAREST_RADIUS_PX
    return int(mask[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].sum())


def compose_with_numpy(values: np.ndarray, clear: np.ndarray, how: str) -> np.ndarray:
    """Pixel by pixel; values (time, band, y, x), clear (time, y, x)."""
    result = np.zeros(values.shape[1:])
    for y, x in np.ndindex(*clear.shape[1:]):
        found = np.flatnonzero(clear[:, y, x])
        if not len(found):
            result[:, y, x] = values[:, :, y, x].mean(axis=0)
        elif how == "clearest":
            counts = [count_box(clear[date], y, x) for date in found]
            result[:, y, x] = values[found[int(np.argmax(counts))], :, y, x]
        else:
            result[:, y, x] = getattr(np, how)(values[found, :, y, x], axis=0)
    return result


@pytest.mark.parametrize("how", list(COMPOSITE_HALO_PX))
@pytest.mark.parametrize("times", [1, 5, 6])
def test_composites_agree_with_numpy(how: str, times: int) -> None:
    reflectance, dates, clear = make_stack(times)
    image = compose(reflectance, dates, clear, how)
    assert image.dtype == torch.float32
    for index in range(len(image)):
        expected = compose_with_numpy(reflectance[index].numpy(), clear[index].numpy(), how)
        np.testing.assert_allclose(image[index].numpy(), expected, rtol=2e-7, atol=1e-7)


def test_clearest_takes_the_earliest_of_equal_dates() -> None:
    reflectance, dates, clear = make_stack()
    image = compose(reflectance, dates, torch.ones_like(clear), "clearest")
    assert torch.equal(image, reflectance[:, 0])


@pytest.mark.parametrize("how", list(COMPOSITE_HALO_PX))
@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e30])
def test_padded_dates_change_nothing(how: str, content: float) -> None:
    reflectance, dates, clear = make_stack()
    padded = torch.cat([torch.full_like(reflectance[:, :2], content), reflectance], dim=1)
    valid = torch.cat([torch.zeros(2, 2, dtype=torch.bool), dates], dim=1)
    seen = torch.cat([torch.ones_like(clear[:, :2]), clear], dim=1)  # even where marked clear
    expected = compose(reflectance, dates, clear, how)
    assert torch.equal(compose(padded, valid, seen, how), expected)


@pytest.mark.parametrize("how", list(COMPOSITE_HALO_PX))
def test_a_window_without_any_date_is_zero(how: str) -> None:
    reflectance, dates, clear = make_stack()
    image = compose(reflectance * torch.nan, dates & False, clear, how)
    assert torch.equal(image, torch.zeros_like(image))


@pytest.mark.parametrize("how", list(COMPOSITE_HALO_PX))
@pytest.mark.parametrize("origin", [(0, 0), (5, 11), (17, 3)])
def test_windows_with_halo_equal_the_whole(how: str, origin: tuple[int, int]) -> None:
    reflectance, dates, clear = make_stack(height=60, width=70)
    halo = COMPOSITE_HALO_PX[how]
    whole = compose(reflectance, dates, clear, how)
    y, x = origin
    window = np.s_[..., y : y + 37, x : x + 41]
    part = compose(reflectance[window], dates, clear[window], how)
    inner = np.s_[..., halo : 37 - halo, halo : 41 - halo]
    assert torch.equal(part[inner], whole[window][inner])


def test_the_halo_of_clearest_is_needed() -> None:
    reflectance, dates, clear = make_stack(height=60, width=70)
    whole = compose(reflectance, dates, clear, "clearest")[..., 10:50, 10:50]
    part = compose(
        reflectance[..., 10:50, 10:50], dates, clear[..., 10:50, 10:50], "clearest"
    )  # fmt: skip
    assert not torch.equal(part, whole)


def test_an_unknown_composite_is_named() -> None:
    with pytest.raises(ValueError, match=r"composite 'best' is unknown; there are mean, median"):
        compose(*make_stack(), "best")
