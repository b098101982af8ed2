"""Sides of windows follow from the model and the recipe alone."""

from dataclasses import replace

import pytest

from bigmap import grid
from bigmap.grid import Lattice
from bigmap.mapping import geometry
from bigmap.mapping.engine import Engine, optimise
from bigmap.mapping.geometry import choose_windows, count_computed
from bigmap.mapping.windows import Windowing
from bigmap.models import build_model
from bigmap.models.dry_pass import PassSize, count_pass_bytes

LATTICE = Lattice("", 10, 512, 512, 1024, 4, 1024, 512)


@pytest.fixture(scope="module")
def spinet():
    return build_model("spinet", {"size": "small"})


def choose(model, core_px=None, *, overlap="auto", lattice=LATTICE):
    windowing = Windowing.for_model(model.spec, overlap=overlap)
    lattice = replace(lattice, upscale=model.spec.upscale)
    return choose_windows(lattice, model, windowing, dates=4, core_px=core_px), windowing


def test_cores_that_blend_lie_half_a_core_off_the_blocks(spinet):
    lattice, _ = choose(spinet, 64)
    assert (lattice.core_px, lattice.shift_px) == (64, 32)
    lattice, _ = choose(spinet, 64, overlap="trim")
    assert (lattice.core_px, lattice.shift_px) == (64, 0)


def test_windows_begin_where_the_model_lets_them():
    model = build_model("segnet", {"size": "small"})
    multiple_px = model.spec.multiple_px
    for core_px in (multiple_px, 2 * multiple_px):
        lattice, windowing = choose(model, core_px, overlap="blend")
        halo_px = windowing.halo_px(model.spec, lattice)
        assert lattice.shift_px in (core_px // 2, core_px // 2 + multiple_px // 2, 0)
        assert (lattice.shift_px - halo_px) % multiple_px == 0
        assert (core_px + 2 * halo_px) % multiple_px == 0
    assert count_computed(lattice, model.spec, windowing) == pytest.approx(
        count_windows(model, lattice, windowing)
    )


def count_windows(model, lattice, windowing):
    """Return the pixels of all windows of a block for each of its own."""
    engine = Engine(model, lattice, windowing, model.spec.layers)
    side_px = lattice.core_px + 2 * windowing.halo_px(model.spec, lattice)
    block = slice(0, lattice.block_px), slice(-lattice.block_px, 0)
    windows = sum(len(cores) for _, cores, _ in engine.list_reads(block))
    return windows * side_px**2 / lattice.block_px**2


@pytest.mark.parametrize("overlap", ["trim", "blend"])
@pytest.mark.parametrize("core_px", [64, 256])
def test_pixels_computed_are_those_of_the_windows_of_a_block(spinet, overlap, core_px):
    lattice, windowing = choose(spinet, core_px, overlap=overlap)
    counted = count_windows(spinet, lattice, windowing)
    assert count_computed(lattice, spinet.spec, windowing) == pytest.approx(counted)


def test_the_best_core_computes_least_of_those_that_fit(spinet, monkeypatch):
    best, windowing = choose(spinet)
    computed = {
        core_px: count_computed(choose(spinet, core_px)[0], spinet.spec, windowing)
        for core_px in (32, 64, 128, 256, 512)
    }
    assert best.core_px == min(computed, key=computed.get)
    side_px = 64 + 2 * windowing.halo_px(spinet.spec, choose(spinet, 64)[0])
    need = count_pass_bytes(optimise(spinet), PassSize(1, 4, side_px))
    monkeypatch.setattr(geometry, "PASS_GB", need / 1e9)
    assert choose(spinet)[0].core_px == 64
    monkeypatch.setattr(geometry, "PASS_GB", 0.0)
    assert choose(spinet)[0].core_px == 32


def test_cores_are_no_larger_than_cells(spinet):
    lattice, _ = choose(spinet, lattice=replace(LATTICE, core_px=64, cell_px=64))
    assert lattice.core_px <= 64
    assert not grid.is_empty(next(lattice.cells((slice(0, 1), slice(0, 1)))))
