"""Places of maps: free, taken, foreign, inside another, or nowhere."""

import pytest

from bigmap.config import parse_recipe
from bigmap.errors import OutputError
from bigmap.lease import Lease
from bigmap.mapping.places import Attempt, check_place
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.run_folder import MARK, RunFolder
from tests.integration.small_world import raw_recipe


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
        RunFolder(str(tmp_path / "map.zarr")).clear(lease, "output.path")
    lease.release()
    assert (folder / "ledger" / "accounts.csv").read_text() == "1,2"


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
