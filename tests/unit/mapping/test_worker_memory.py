"""Peak memory of a worker, worked out by hand."""

import pytest

from bigmap.mapping.worker_memory import (
    HEAP_SHARE,
    IDLE_BYTES,
    KEPT_BYTES,
    CanvasLoad,
    CellLoad,
    count_peak_bytes,
)
from bigmap.models import ModelSpec
from bigmap.models.base import CLASS, CONFIDENCE, OBSERVATIONS, ClassEntry, image_layer

CELL = CellLoad(pixels=1_000_000, bands=3, dates=40, items=40, masks=50)
LEGEND = (ClassEntry(0, "a", "#000000"), ClassEntry(1, "b", "#ffffff"))
CLASSES = ModelSpec(
    name="x", title="", bands=("red",), upscale=1, halo_px=0, kind="windowed", legend=LEGEND
)
IMAGE = ModelSpec(
    name="x", title="", bands=("red",), upscale=1, halo_px=0, kind="exact",
    extra_layers=(image_layer(("red", "green")),),
)  # fmt: skip


def test_a_cell_is_read_in_place_unless_dates_are_made_of_several_items():
    assert CELL.held_bytes == 1e6 * 40 * (2 * 3 + 1)
    # The stack of files, beside two masks of all items.
    assert CELL.reading_bytes == 1e6 * (2 * 40 * 3 + 2 * 50)
    several = CellLoad(pixels=1_000_000, bands=3, dates=40, items=41, masks=50)
    assert several.reading_bytes == 1e6 * (2 * (41 + 40) * 3 + 2 * 50)


def test_many_masks_take_more_than_the_bands_of_one_date():
    many = CellLoad(pixels=1000, bands=1, dates=1, items=1, masks=100)
    assert many.reading_bytes == 1000 * 100 * 5


def test_layers_are_held_and_sums_of_what_blends():
    layers = (CLASS, CONFIDENCE, OBSERVATIONS)
    blending = CanvasLoad(100, CLASSES, layers, blended=0.5)
    assert blending.growing_bytes == 100 * (3 + 0.5 * 4 * (2 + 1))
    assert blending.finishing_bytes == blending.growing_bytes + 100 * 3
    trimming = CanvasLoad(100, IMAGE, (OBSERVATIONS, *IMAGE.extra_layers), blended=0)
    # uint16 is held as int32.
    assert trimming.growing_bytes == 100 * (1 + 2 * 4)
    assert trimming.finishing_bytes == 100 * (9 + 2 * 2 + 3)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_one_block_predicts_while_the_others_read(blocks):
    canvas = CanvasLoad(1_000_000, CLASSES, (CLASS,), blended=0.1)
    waiting = canvas.growing_bytes + CELL.reading_bytes
    found = count_peak_bytes(CELL, canvas, pass_bytes=5e9, shared_bytes=1e8, blocks=blocks)
    cells = CELL.held_bytes + CELL.reading_bytes  # one in hand, and the next one
    arrays = 1e8 + canvas.growing_bytes + cells + (blocks - 1) * waiting
    heap = HEAP_SHARE * arrays + 5e9
    assert found == pytest.approx(IDLE_BYTES + KEPT_BYTES + heap)
