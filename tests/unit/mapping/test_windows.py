"""Windows of a region: how large they are, how they blend, and what scores are refused."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bigmap
from bigmap.errors import ScoresError
from bigmap.grid import Lattice
from bigmap.mapping.windows import Windowing, _ramp
from bigmap.models import MapModel, build_model
from tests.unit.mapping.cubes import make_cube, predict


@pytest.mark.parametrize("model", ["ndvi", "small-conv"])
@pytest.mark.parametrize("overlap", ["trim", "blend"])
def test_windows_do_not_show(model, overlap):
    """Windows of 16 px give what one window over everything gives, away from the cube's edge."""
    cube = make_cube(size=64)
    built = build_model(model)
    small = bigmap.predict(cube, built, core_px=16, cell_px=64, overlap=overlap)
    large = bigmap.predict(cube, built, core_px=64, cell_px=64, overlap="trim")
    for layer in ("class", "confidence"):
        ours, theirs = (d[layer].compute(scheduler="synchronous").values for d in (small, large))
        assert (ours != theirs).mean() < 2e-4


@settings(max_examples=40, deadline=None)
@given(
    core_px=st.sampled_from([8, 16, 64]), upscale=st.integers(1, 4), start=st.integers(-40, 40),
    size=st.integers(1, 100),
)  # fmt: skip
def test_weights_of_neighbours_sum_to_one(core_px, upscale, start, size):
    part = slice(start, start + size)
    blend_px = core_px // 8
    total = torch.zeros(size * upscale)
    for first in range((start // core_px - 1) * core_px, start + size + core_px, core_px):
        core = slice(first, first + core_px)
        reach = slice(max(start, first - blend_px), min(start + size, first + core_px + blend_px))
        if reach.stop > reach.start:
            place = slice((reach.start - start) * upscale, (reach.stop - start) * upscale)
            total[place] += _ramp(core, reach, blend_px, upscale)
    assert torch.equal(total, torch.ones_like(total)), part


def test_windows_of_a_model_are_multiples_of_what_it_needs():
    lattice = Lattice("EPSG:25831", 10.0, 64, 64, 64, 1, 64, 64)
    spec = dataclasses.replace(build_model("small-conv").spec, halo_px=13, multiple_px=8)
    assert Windowing("trim").halo_px(spec, lattice) == 16
    assert Windowing("blend").halo_px(spec, lattice) == 20  # a window has 104 px
    assert Windowing.for_model(spec).overlap == "trim"
    assert Windowing.for_model(dataclasses.replace(spec, kind="windowed")).overlap == "blend"


class NotFinite(MapModel):
    """Scores that hold one value which is not finite."""

    has_weights = False

    def __init__(self, kind, bad):
        super().__init__()
        ndvi = build_model("ndvi", {"upscale": 1})
        self.spec, self.ndvi, self.bad = dataclasses.replace(ndvi.spec, kind=kind), ndvi, bad

    def forward(self, reflectance, dates, clear):
        scores = dict(self.ndvi(reflectance, dates, clear))
        scores["probability"][0, 0, 3, 4] = self.bad
        return scores


@pytest.mark.parametrize("kind", ["exact", "windowed"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_fail_instead_of_becoming_a_class(kind, bad):
    with pytest.raises(ScoresError, match="the probability that ndvi gives is not finite in rows"):
        predict(make_cube(size=32), NotFinite(kind, bad))
