"""What a plan says that blocks read and predict, counted by hand."""

import pytest
from rasterio.warp import transform_bounds

import bigmap
from bigmap.config import parse_recipe
from bigmap.mapping.loads import estimate_plan
from tests.integration.tiny_scenes import BANDS, PIXEL_M, write_tiny_scenes

BLOCK_PX, CORE_PX, DATES = 256, 128, 2
LEFT_M, TOP_M = 10 * BLOCK_PX * 170, 10 * BLOCK_PX * 1800
"""Of a block, inside the scenes."""


def estimate(folder, *, side_px, overlap):
    """Estimate a map of the upper left part of one block; returns its halo too."""
    box = LEFT_M + 50, TOP_M - 10 * side_px + 50, LEFT_M + 10 * side_px - 50, TOP_M - 50
    plan = bigmap.plan(
        parse_recipe(
            {
                "name": "x", "area": {"bbox": transform_bounds("EPSG:32631", "EPSG:4326", *box)},
                "grid": {"crs": "EPSG:32631", "gsd_m": 10, "core_px": CORE_PX,
                         "cell_px": BLOCK_PX, "block_px": BLOCK_PX, "shard_px": BLOCK_PX,
                         "chunk_px": BLOCK_PX},
                "source": {"kind": "files", "files": [str(write_tiny_scenes(folder / "scenes"))],
                           "start": "2024-05-01", "end": "2024-05-31"},
                "model": {"name": "small-conv", "options": {"upscale": 1}},
                "inference": {"overlap": overlap},
                "output": {"path": str(folder / "x.zarr")},
            }
        )
    )  # fmt: skip
    assert len(plan.only.blocks) == 1
    return estimate_plan(plan), plan.only.halo_px


@pytest.mark.parametrize(("side_px", "cores"), [(256, 4), (128, 1)])
def test_a_trimmed_block_sees_the_windows_that_meet_the_area(tmp_path, side_px, cores):
    found, halo_px = estimate(tmp_path, side_px=side_px, overlap="trim")
    assert found.date_px == DATES * cores * (CORE_PX + 2 * halo_px) ** 2
    assert found.output_px == BLOCK_PX**2
    bands = (side_px + 2 * halo_px) ** 2
    # The mask is read on the whole cell, because it chooses its dates.
    masks = (BLOCK_PX + (2 if cores == 4 else 1) * halo_px) ** 2
    share = (10 / PIXEL_M) ** 2
    assert found.samples == pytest.approx(DATES * (bands * len(BANDS) + masks) * share)


def test_a_block_that_blends_sees_its_neighbours_windows_too(tmp_path):
    found, halo_px = estimate(tmp_path, side_px=BLOCK_PX, overlap="blend")
    # Cores and cells lie half a core off the block: one core of the cell before, two of the next.
    cores = (1 + 2) ** 2
    assert found.date_px == DATES * cores * (CORE_PX + 2 * halo_px) ** 2
    assert found.window_km2 == pytest.approx(cores * (CORE_PX + 2 * halo_px) ** 2 / 1e4)
    bands = (CORE_PX + 2 * halo_px + BLOCK_PX + 2 * halo_px) ** 2
    # Cells choose their dates as wholes; windows reach beyond them.
    masks = (BLOCK_PX + halo_px + BLOCK_PX + 2 * halo_px) ** 2
    share = (10 / PIXEL_M) ** 2
    assert found.samples == pytest.approx(DATES * (bands * len(BANDS) + masks) * share)
