"""What is kept beside a map: known as ours, mended, and not believed where it is damaged."""

import json
from pathlib import Path

import pytest

from bigmap.errors import OutputError
from bigmap.lease import Lease
from bigmap.mapping.run_folder import RunFolder, check_run_folder
from bigmap.mapping.status import read_status


def test_a_run_folder_of_a_version_before_marks_is_known_by_its_files(tmp_path):
    for name in ("recipe.yaml", "plan.json"):
        (tmp_path / name).write_text("")
    check_run_folder(str(tmp_path), "map", signs=("recipe.yaml", "plan.json"))
    with pytest.raises(OutputError, match="not the run folder of a training"):
        check_run_folder(str(tmp_path), "training", signs=("checkpoint.pt",))


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


@pytest.mark.parametrize("mark", [b"[" * 2_000, b"{", b"\xff", b"1" * 5_000, b"[]"])
def test_a_damaged_mark_of_overviews_does_not_call_them_complete(finished, mark):
    _, run = finished
    assert run.part("").has_overviews()
    (file,) = (Path(run.path) / "overviews").iterdir()
    file.write_bytes(mark)
    assert not run.part("").has_overviews()


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
    run.check_removable("output.path")
    with pytest.raises(OutputError, match=r"is damaged|its content is not what"):
        run.check_plan(plan)


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_items_that_are_lost_or_damaged_leave_one_advice(tmp_path, content):
    """Without them a run can neither go on nor make them again."""
    items = tmp_path / "map.run" / "items.parquet"
    items.parent.mkdir()
    if content is not None:
        items.write_bytes(content)
    fault = r"items\.parquet (does not exist|is not a catalogue that bigmap saved.*)"
    advice = "put it back from a copy, or start again with --overwrite"
    with pytest.raises(OutputError, match=f"{fault}; {advice}$"):
        RunFolder(str(tmp_path / "map.zarr")).part("").read_items()


@pytest.mark.parametrize(
    ("name", "field"), [("map.zarr", "output.path"), ("chips.zarr", "samples.path")]
)
def test_what_bigmap_did_not_make_is_not_removed(tmp_path, name, field):
    """Be it in the way of a map or of samples."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.pdf").write_text("years")
    with pytest.raises(OutputError, match=rf"^{field}: .*{name} exists and was not made by"):
        RunFolder(str(tmp_path / name)).check_removable(field)
