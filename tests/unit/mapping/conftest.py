"""What tests of runs share: a plan of a few blocks, and a run of it that has come to its end."""

from __future__ import annotations

import numpy as np
import pytest

import bigmap
from bigmap.config import parse_recipe
from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.store.shards import MapWriter
from tests.integration.small_world import raw_recipe, write_scenes
from tests.unit.mapping.small_runs import start_run


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A plan of a few blocks, whose output is set by a run."""
    folder = tmp_path_factory.mktemp("scenes")
    items = write_scenes(folder / "scenes")
    return bigmap.plan(parse_recipe(raw_recipe(source__files=[str(items)])))


@pytest.fixture
def finished(plan, tmp_path):
    """A run all of whose blocks but one are recorded as empty, and that one as written."""
    plan, run, lease = start_run(plan, tmp_path)
    side = plan.only.lattice.block_px
    layers = {
        layer.name: np.ones((side, side), dtype=layer.dtype)
        for layer in plan.only.template().layers
    }
    shards = MapWriter(run.output).write(layers, (slice(0, side), slice(0, side)))
    ledger = run.part("").open_ledger(lease)
    for number, block in enumerate(plan.only.blocks):
        written = tuple((shard.key, shard.size_bytes) for shard in shards) if number == 0 else ()
        ledger.append(
            BlockRecord(plan.only.name_block(block), "done" if written else "empty", shards=written)
        )
    ledger.flush()
    run.part("").mark_overviews(lease, complete=True)
    lease.release()
    return plan, run
