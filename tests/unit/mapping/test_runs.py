"""Places of maps and what is kept beside them: taken, foreign, damaged, or somewhere else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bigmap
from bigmap.config import parse_recipe
from bigmap.errors import OutputError
from bigmap.lease import Lease
from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.places import Attempt, check_place
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.reuse import _copy, _Earlier, _Reusable
from bigmap.mapping.run_folder import MARK, RunFolder, check_run_folder
from bigmap.mapping.status import read_status
from bigmap.mapping.store.shards import MapWriter
from bigmap.mapping.store.template import complete_map
from tests.integration.small_world import raw_recipe, write_scenes


def recipe_at(path):
    return parse_recipe(raw_recipe(output__path=str(path)))


def check(path, **flags):
    recipe = recipe_at(path)
    return check_place(recipe, Purpose.of_map(recipe), Attempt(**flags))


def test_a_free_place_is_taken(tmp_path):
    assert check(tmp_path / "map.zarr") is False
    (tmp_path / "map.run").mkdir()
    assert check(tmp_path / "map.zarr") is False
    (tmp_path / "map.run" / "lease").mkdir()
    assert check(tmp_path / "map.zarr") is False


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("marked", [None, '{"kind": "training"}', "[]", '"map"'])
def test_a_folder_that_has_the_name_by_chance_is_left_alone(tmp_path, flags, marked):
    folder = tmp_path / "map.run"
    (folder / "ledger").mkdir(parents=True)
    (folder / "ledger" / "accounts.csv").write_text("1,2")
    (folder / "plan.json").write_text("{}")
    if marked is not None:
        (folder / MARK).write_text(marked)
    with pytest.raises(OutputError, match=r"map\.run: exists and is not the run folder of a map"):
        check(tmp_path / "map.zarr", **flags)
    lease = Lease(str(folder))
    lease.acquire()
    with pytest.raises(OutputError, match="is not the run folder of a map"):
        RunFolder(str(tmp_path / "map.zarr")).clear(lease)
    lease.release()
    assert (folder / "ledger" / "accounts.csv").read_text() == "1,2"


def test_a_run_folder_of_a_version_before_marks_is_known_by_its_files(tmp_path):
    for name in ("recipe.yaml", "plan.json"):
        (tmp_path / name).write_text("")
    check_run_folder(str(tmp_path), "map", signs=("recipe.yaml", "plan.json"))
    with pytest.raises(OutputError, match="not the run folder of a training"):
        check_run_folder(str(tmp_path), "training", signs=("checkpoint.pt",))


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}])
def test_a_link_that_leads_nowhere_is_told(tmp_path, flags):
    (tmp_path / "map.zarr").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"map\.zarr is a link to .*/gone, which does not exist"):
        check(tmp_path / "map.zarr", **flags)
    (tmp_path / "maps").symlink_to(tmp_path / "disk")
    with pytest.raises(OutputError, match=r"/maps is a link to .*/disk, which does not exist"):
        check(tmp_path / "maps" / "map.zarr", **flags)


@pytest.mark.parametrize("place", ["a::b.zarr", "maps/a::b.zarr", "simplecache::maps/b.zarr"])
def test_a_path_that_would_be_a_chain_of_urls_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps").mkdir()
    with pytest.raises(OutputError, match="holds '::'"):
        check(place)


@pytest.mark.parametrize("around", ["other.zarr", "other.zarr/1", "other.run"])
def test_a_place_inside_another_map_or_run_is_refused(tmp_path, around):
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr" / "zarr.json").write_text("{}")
    (tmp_path / "other.run").mkdir()
    (tmp_path / "other.run" / MARK).write_text('{"kind": "map"}')
    with pytest.raises(OutputError, match=r"lies inside another map or run, .*/other\."):
        check(tmp_path / around / "map.zarr")
    (tmp_path / "link").symlink_to(tmp_path / around.partition("/")[0])
    with pytest.raises(OutputError, match="lies inside another map or run"):
        check(tmp_path / "link" / "map.zarr")


def test_a_misspelt_bucket_is_not_made(monkeypatch):
    class NoBuckets:
        protocol = ("s3", "s3a")

        def info(self, path):
            asked.append(path)
            raise FileNotFoundError(path)

    asked: list[str] = []
    monkeypatch.setattr("bigmap.mapping.places.locate", lambda place: (NoBuckets(), place[5:]))
    with pytest.raises(OutputError, match="there is no bucket s3://typo-bucket; make it first"):
        check("s3://typo-bucket/maps/m.zarr")
    assert asked == ["typo-bucket"]


@pytest.fixture
def leases(tmp_path):
    """Two leases on one run, of which the second has taken over."""
    old = Lease(str(tmp_path / "map.run"))
    old.acquire()
    old.stopping.set()
    file = Path(old.path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": 0}))
    new = Lease(str(tmp_path / "map.run"))
    new.acquire()
    yield old, new
    for lease in (old, new):
        lease.release()


def test_overviews_are_complete_if_the_newest_driver_says_so(tmp_path, leases, monkeypatch):
    old, new = leases
    folder = RunFolder(str(tmp_path / "map.zarr"))
    (tmp_path / "map.run" / "plan.json").write_text('{"blocks": 1}')
    assert not folder.part("").has_overviews()
    folder.part("").mark_overviews(new, complete=False)
    with pytest.raises(OutputError, match="took this output over"):
        folder.part("").mark_overviews(old, complete=True)
    # It was stopped between the look at the lease and the write.
    monkeypatch.setattr(old, "check", lambda: None)
    folder.part("").mark_overviews(old, complete=True)
    assert not folder.part("").has_overviews()
    folder.part("").mark_overviews(new, complete=True)
    assert folder.part("").has_overviews()
    # Those of a map that was started anew since are not.
    (tmp_path / "map.run" / "plan.json").write_text('{"blocks": 1, "term": 3}')
    assert not folder.part("").has_overviews()


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A plan of a few blocks, whose output is set by :func:`start`."""
    folder = tmp_path_factory.mktemp("scenes")
    items = write_scenes(folder / "scenes")
    return bigmap.plan(parse_recipe(raw_recipe(source__files=[str(items)])))


def start(plan, folder):
    """Begin a run and return its plan, its folder and its lease."""
    output = str(folder / "map.zarr")
    purpose = replace(plan.purpose, path=output)
    plan = replace(plan, purpose=purpose, parts=(replace(plan.only, purpose=purpose),))
    run = RunFolder(output)
    lease = Lease(run.path)
    lease.acquire()
    run.create(plan, lease)
    complete_map(output, plan.only.template())
    return plan, run, lease


@pytest.fixture
def finished(plan, tmp_path):
    """A run all of whose blocks but one are recorded as empty, and that one as written."""
    plan, run, lease = start(plan, tmp_path)
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


def test_a_run_of_a_version_with_zones_in_its_recipe_goes_on(finished):
    plan, run = finished
    file = Path(run.path) / "recipe.yaml"
    text = file.read_text()
    file.write_text(text.replace("area:\n", "area:\n  utm_zone: null\n", 1))
    assert file.read_text() != text
    assert run.read_recipe() == (plan.recipe, len(plan.only.blocks))
    assert read_status(run.output).is_whole


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'{"blocks": "many"}'])
def test_what_follows_from_the_plan_is_made_anew(finished, content):
    plan, run = finished
    files = [Path(run.path) / name for name in ("plan.json", "area.json")]
    before = json.loads(files[0].read_text()), files[1].read_bytes()
    for file in files:
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        run.check_plan(plan)
        lease = Lease(run.path)
        lease.acquire()
        assert [each.partition(":")[0] for each in run.mend(plan, lease)] == [str(file)]
        assert run.mend(plan, lease) == []
        lease.release()
    assert json.loads(files[0].read_text()) == before[0] | {"term": 0}
    assert files[1].read_bytes() == before[1]
    assert read_status(run.output).is_whole


def test_another_area_is_refused_without_a_plan_too(finished, plan):
    _, run = finished
    (Path(run.path) / "plan.json").unlink()
    (Path(run.path) / "area.json").write_text(
        json.dumps([plan.only.area.parts[0].buffer(5).wkb_hex])
    )
    with pytest.raises(OutputError, match=r"area\.file: its content is not what"):
        run.check_plan(finished[0])


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
    plan, _, lease = start(plan, tmp_path / "new")
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
    plan, _, lease = start(plan, tmp_path / "new")
    reusable = _Reusable(plan.only.blocks[0], record)
    assert _copy(plan.only, earlier, reusable).shards == record.shards
    file = Path(run.output) / record.shards[0][0]
    shutil.move(file, tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    assert _copy(plan.only, earlier, reusable) is None
    lease.release()


@pytest.mark.parametrize("mark", [b"[" * 2_000, b"{", b"\xff", b"1" * 5_000, b"[]"])
def test_a_damaged_mark_of_overviews_does_not_call_them_complete(finished, mark):
    _, run = finished
    assert run.part("").has_overviews()
    (file,) = (Path(run.path) / "overviews").iterdir()
    file.write_bytes(mark)
    assert not run.part("").has_overviews()


@pytest.mark.parametrize("change", [{"term": [1]}, {"zones": []}, {"blocks": None}])
def test_a_plan_whose_facts_are_of_another_kind_is_damaged(finished, change):
    _, run = finished
    file = Path(run.path) / "plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (name,) = change
    part = run.part("")
    for read in (part.has_overviews, part.read_plan, run.parts, part.open_ledger):
        with pytest.raises(OutputError, match=rf"plan\.json: is damaged \(its {name} are not"):
            read()


def test_zones_that_do_not_tell_their_blocks_are_damaged(finished):
    _, run = finished
    file = Path(run.path) / "plan.json"
    file.write_text(json.dumps({"blocks": 2, "zones": {"utm31n": [1]}}))
    with pytest.raises(OutputError, match=r"plan\.json: is damaged \(its zones are none, or"):
        read_status(run.output)


def test_an_extent_without_end_is_refused(finished):
    _, run = finished
    file = Path(run.path) / "plan.json"
    content = json.loads(file.read_text()) | {"extent": [[0, float("inf")], [0, 8]]}
    file.write_text(json.dumps(content))
    with pytest.raises(OutputError, match="does not hold the area of its run"):
        run.part("").read_plan()


@pytest.mark.parametrize("attributes", ["[[1, 2]]", '{"bigmap:model": "spinet"}'])
def test_odd_attributes_of_a_map_are_not_its_own(finished, attributes):
    plan, run = finished
    (Path(run.path) / "plan.json").unlink()
    (Path(run.output) / "zarr.json").write_text(f'{{"attributes": {attributes}}}')
    run.check_removable()
    with pytest.raises(OutputError, match=r"is damaged|its content is not what"):
        run.check_plan(plan)
