"""Blocks of an earlier map: which of them a new run takes, and nothing else of it."""

import shutil
from pathlib import Path

import pytest

from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.reuse import _copy, _Earlier, _Reusable
from tests.unit.mapping.small_runs import start_run


@pytest.mark.parametrize(
    "key",
    ["../secret", "/etc/hostname", "class/c/0/../../../../secret", "class/c/9/9", "zarr.json", ""],
)
def test_nothing_but_objects_of_its_block_is_taken_from_an_earlier_map(
    finished, plan, tmp_path, key
):
    before, run = finished
    earlier = _Earlier(before.only, run.part(""))
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "new").mkdir()
    plan, _, lease = start_run(plan, tmp_path / "new")
    record = BlockRecord(plan.only.name_block(plan.only.blocks[0]), "done", shards=((key, 6),))
    files = set((tmp_path / "new").rglob("*"))
    assert _copy(plan.only, earlier, _Reusable(plan.only.blocks[0], record)) is None
    assert set((tmp_path / "new").rglob("*")) == files
    lease.release()


def test_a_link_out_of_an_earlier_map_is_not_followed(finished, plan, tmp_path):
    before, run = finished
    earlier = _Earlier(before.only, run.part(""))
    (record,) = (each for each in run.part("").ledger.latest().values() if each.shards)
    (tmp_path / "new").mkdir()
    plan, _, lease = start_run(plan, tmp_path / "new")
    reusable = _Reusable(plan.only.blocks[0], record)
    assert _copy(plan.only, earlier, reusable).shards == record.shards
    file = Path(run.output) / record.shards[0][0]
    shutil.move(file, tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    assert _copy(plan.only, earlier, reusable) is None
    lease.release()
