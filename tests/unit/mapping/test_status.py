"""How far a run is, as its ledger and what lies at its place tell together."""

import json
import shutil
from pathlib import Path

import pytest

from bigmap.errors import OutputError
from bigmap.mapping.status import read_status


def test_a_map_that_was_deleted_is_not_finished(finished):
    _, run = finished
    assert read_status(run.output).is_whole
    shutil.move(run.output, f"{run.output}.away")
    status = read_status(run.output)
    assert (status.is_whole, status.has_map, len(status.lost)) == (False, False, 1)
    shutil.move(f"{run.output}.away", run.output)
    (Path(run.output) / "class" / "zarr.json").write_text("{")
    assert not read_status(run.output).is_whole


def test_a_lost_object_is_open_to_status_as_to_resume(finished):
    plan, run = finished
    (record,) = (each for each in run.part("").ledger.latest().values() if each.shards)
    (Path(run.output) / record.shards[0][0]).unlink()
    status = read_status(run.output)
    assert status.lost == (record.block,) == (plan.only.name_block(plan.only.blocks[0]),)
    assert not status.is_whole


@pytest.mark.parametrize("name", ["recipe.yaml", "plan.json", "items.parquet"])
@pytest.mark.parametrize("damage", ["removed", "emptied", "cut", "zeroed"])
def test_status_names_a_damaged_file_of_the_run(finished, name, damage):
    _, run = finished
    file = Path(run.path) / name
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(
            {"emptied": b"", "cut": content[:-15], "zeroed": bytes(len(content))}[damage]
        )
    if name == "recipe.yaml" and damage == "cut":
        return  # may be a whole recipe still
    with pytest.raises(OutputError, match=f"{name}: is .*put it back from a copy, or start again"):
        read_status(run.output)


def test_zones_that_do_not_tell_their_blocks_are_damaged(finished):
    _, run = finished
    file = Path(run.path) / "plan.json"
    file.write_text(json.dumps({"blocks": 2, "zones": {"utm31n": [1]}}))
    with pytest.raises(OutputError, match=r"plan\.json: is damaged \(its zones are none, or"):
        read_status(run.output)
