"""Figures as people read them."""

from __future__ import annotations

import pytest

from bigmap.mapping.progress import format_duration, format_km2


@pytest.mark.parametrize(
    ("km2", "text"),
    [
        (0, "0"), (0.0004, "below 0.001"), (0.001, "0.001"), (0.745, "0.745"), (11.44, "11.4"),
        (15_182.8, "15,183"),
    ],
)  # fmt: skip
def test_areas(km2, text):
    assert format_km2(km2) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(44.6, "45 s"), (200, "3 min 20 s"), (7_500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
