"""From a recipe to a plan: what it holds, what fits together, and what is refused by name."""

from __future__ import annotations

import json

import pytest
import shapely

import bigmap
from bigmap.area import list_utm_zones
from bigmap.clusters.sizes import size_cluster
from bigmap.config import parse_recipe
from bigmap.errors import CatalogError, EmptyAreaError, OutputError, PlanError, RecipeError
from bigmap.grid import Lattice
from bigmap.lease import Lease
from bigmap.mapping.planning import choose_windowing, make_lattice, make_plan
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.windows import Windowing
from bigmap.models.choosing import choose_model
from tests.integration.small_world import TRANSFORM, raw_recipe, write_scenes
from tests.integration.tiny_scenes import write_tiny_scenes
from tests.unit.mapping.small_runs import edit_items, move_scene, write_area

SLURM = {"kind": "slurm", "interface": "lo"}
EXISTING = {"kind": "existing", "address": "tcp://127.0.0.1:1"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working folder with three scenes of 2.56 km."""
    write_scenes(tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(**changes):
    return bigmap.plan(parse_recipe(raw_recipe(**changes)))


def lattice_of(upscale=1, model="ndvi", **changes):
    recipe = parse_recipe(raw_recipe(model={"name": model, "options": {"upscale": upscale}},
                                     **changes))  # fmt: skip
    model, purpose = choose_model(recipe.model).build(), Purpose.of_map(recipe)
    windowing = Windowing.for_model(model.spec)
    return make_lattice(recipe, purpose, model, windowing, recipe.grid.crs)


def test_a_lattice_joins_the_grid_with_the_upscale_of_the_model():
    lattice = lattice_of(4, grid__shard_px=256, grid__anchor_m=[3, 5])
    assert lattice == Lattice("EPSG:32631", 10, 32, 64, 64, 4, 256, 32, (3, 5))
    assert lattice.output_gsd_m == 2.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"upscale": 3, "grid__shard_px": 128},
            r"^grid\.block_px: 64 px, upscaled 3 times, is 192 .* not a multiple of grid\.shard_px",
        ),
        (
            {"model": "segnet", "upscale": 1, "grid__core_px": 16, "grid__cell_px": 16},
            r"^grid\.core_px: 16 is not a multiple of 32, which segnet needs$",
        ),
        ({"grid__crs": "utm"}, r"^grid\.crs: utm stands for many grids, .* EPSG:32631$"),
        (
            {"grid__crs": "ESRI:54009", "reading__loader": "stackstac"},
            r"^grid\.crs: .*; set reading\.loader to odc-stac$",
        ),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_by_its_field(changes, message):
    with pytest.raises(RecipeError, match=message):
        lattice_of(**changes)


def test_a_crs_without_epsg_is_read_by_odc_stac():
    lattice = lattice_of(grid__crs="ESRI:54009", reading__loader="odc-stac")
    assert lattice.crs == "ESRI:54009"


def test_blocks_are_those_that_the_area_meets_in_row_major_order(world):
    """An L two blocks wide and three high; a block is 640 m."""
    corner = shapely.box(10, 10, 1270, 630).union(shapely.box(10, 10, 630, 1900))
    part = plan(area=write_area(world, corner), grid__anchor_m=[TRANSFORM.c, TRANSFORM.f]).only
    names = [part.name_block(block) for block in part.blocks]
    assert names == ["r0c0", "r0c1", "r1c0", "r2c0"]
    assert part.extent == (slice(0, 192), slice(0, 128))
    # Pixels of 10 m whose centres lie inside.
    assert part.count_km2(part.blocks[0]) == pytest.approx((63 * 62 + 62) * 1e-4)
    assert sum(map(part.count_km2, part.blocks)) == pytest.approx(corner.area / 1e6)


def test_a_plan_takes_the_items_within_its_context_alone(world):
    """Scenes are moved west to end before the area: within three cells of 640 m, or beyond."""
    gap_m = {"0401": 3 * 640 - 200, "0501": 3 * 640 + 200, "0601": -2560}
    edit_items(world, lambda item, day: move_scene(item, -2560 - gap_m[day]))
    part = plan(area=write_area(world, shapely.box(0, 800, 640, 1600))).only
    assert {row.id[14:18] for row in part.catalogue.rows} == {"0401", "0601"}


@pytest.mark.parametrize(
    ("model", "asked", "layers"),
    [
        ("ndvi", None, ("class", "confidence", "observations", "ndvi")),
        ("segnet", None, ("class", "confidence", "observations")),
        ("segnet", ["probability", "class"], ("class", "probability")),
    ],
)
def test_layers_are_those_asked_for_in_the_order_of_the_model(world, model, asked, layers):
    part = plan(model={"name": model, "options": {"upscale": 1}}, output__layers=asked).only
    assert tuple(layer.name for layer in part.layers) == layers
    assert tuple(layer.name for layer in part.template().layers) == layers


def test_a_layer_that_the_model_lacks_is_refused(world):
    with pytest.raises(
        RecipeError, match=r"^output\.layers: ndvi has no layer height; it has class, confidence"
    ):
        plan(output__layers=["class", "height"])


@pytest.mark.parametrize(
    ("cluster", "asked", "driver_has_gpu", "device"),
    [
        ({"kind": "local"}, "auto", False, "cpu"),
        ({"kind": "local"}, "auto", True, "cuda"),
        ({"kind": "local"}, "cpu", True, "cpu"),
        ({"kind": "local-cuda"}, "auto", False, "cuda"),
        (SLURM, "auto", True, "cpu"),
        (SLURM | {"gpus_per_job": 1}, "auto", False, "cuda"),
        (SLURM | {"gpus_per_job": 1}, "cuda", False, "cuda"),
        (SLURM | {"gpus_per_job": 1}, "cpu", True, "cpu"),
        (EXISTING, "auto", True, "cpu"),
        (EXISTING | {"gpu": True}, "auto", False, "cuda"),
    ],
)
def test_the_device_is_that_of_the_workers_and_not_of_the_driver(
    monkeypatch, cluster, asked, driver_has_gpu, device
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: driver_has_gpu)
    inference = {"device": asked, "batch_windows": 3}
    recipe = parse_recipe(raw_recipe(cluster=cluster, inference=inference))
    spec = choose_model(recipe.model).build().spec
    windowing = choose_windowing(recipe.inference, spec, size_cluster(recipe.cluster))
    assert windowing == Windowing("trim", 3, "float32", device)


@pytest.mark.parametrize("cluster", [SLURM, EXISTING])
def test_a_gpu_on_a_cluster_without_any_is_refused(cluster):
    recipe = parse_recipe(raw_recipe(cluster=cluster, inference={"device": "cuda"}))
    spec = choose_model(recipe.model).build().spec
    message = (
        rf"^inference\.device: cuda is asked for, but .* this {cluster['kind']} cluster have no"
    )
    with pytest.raises(RecipeError, match=message):
        choose_windowing(recipe.inference, spec, size_cluster(recipe.cluster))


def test_more_dates_than_a_model_is_built_for_are_refused(world):
    network = {"name": "highres-net", "options": {"max_dates": 4}}
    with pytest.raises(
        RecipeError, match=r"^dates\.max_per_cell: 5 is more than the 4 that highres-net is built"
    ):
        plan(model=network, dates__max_per_cell=5)
    assert plan(model=network, dates__max_per_cell=4).only.purpose.dates.max_per_cell == 4


def test_more_blocks_than_can_be_listed_are_refused(world):
    """6 degrees by 10: about 470 km by 1,110 km."""
    with pytest.raises(
        PlanError, match=r"^area: needs 1,[2-5]\d\d,\d{3} blocks, more than 1,000,000"
    ):
        plan(area={"bbox": [0.5, 40, 6, 50]})


def test_items_beside_the_area_alone_are_refused(world):
    edit_items(world, lambda item, day: move_scene(item, -2560 - 1720))
    area = write_area(world, shapely.box(0, 800, 640, 1600))
    with pytest.raises(CatalogError, match=r"^area: none of the 3 items found meets the area"):
        plan(area=area)


@pytest.mark.parametrize(
    "area",
    [
        # Its eastern end lies 17 m beyond the meridian, between the centres of two pixels.
        {"bbox": [5.97, 41.6, 6.0002, 41.602]},
        # Its buffer ends 17 m before the meridian, and zones are searched a little farther.
        {"bbox": [5.95, 41.6, 5.971, 41.602], "buffer_m": 2400},
    ],
)
def test_a_zone_without_a_pixel_of_the_area_is_left_out(tmp_path, area):
    assert len(list_utm_zones(**area)) == 2
    items = write_tiny_scenes(tmp_path / "scenes", left=700_000)
    found = plan(area=area, grid__crs="utm", grid__gsd_m=300, source__files=[str(items)],
                 source__start="2024-05-01")  # fmt: skip
    assert [part.name for part in found.parts] == ["utm31n"]


@pytest.mark.parametrize("crs", ["utm", "EPSG:32631"])
def test_an_area_without_a_pixel_in_any_zone_is_told_so(tmp_path, crs):
    items = write_tiny_scenes(tmp_path / "scenes", left=700_000)
    with pytest.raises(EmptyAreaError, match=r"^area: holds no pixel of the grid, .*larger area"):
        plan(area={"bbox": [6.0, 41.6, 6.0001, 41.6001]}, grid__crs=crs, grid__gsd_m=300,
             source__files=[str(items)])  # fmt: skip


def test_parts_of_a_plan_have_grids_blocks_and_stores_of_their_own(tmp_path):
    items = write_tiny_scenes(tmp_path / "scenes", left=700_000)
    found = plan(area={"bbox": [5.95, 41.6, 6.05, 41.65]}, grid__crs="utm", grid__gsd_m=100,
                 source__files=[str(items)], source__start="2024-05-01")  # fmt: skip
    west, east = found.parts
    assert (west.lattice.crs, east.lattice.crs) == ("EPSG:32631", "EPSG:32632")
    assert (west.store, east.store) == ("map.zarr/utm31n", "map.zarr/utm32n")
    # 0.05 degrees by 0.05 on each side of the meridian.
    for part in found.parts:
        assert sum(map(part.count_km2, part.blocks)) == pytest.approx(4.16 * 5.55, rel=0.01)


def test_a_run_that_goes_on_takes_the_items_that_it_began_with(world):
    before = plan(output__path=str(world / "map.zarr"))
    run = RunFolder(before.output)
    lease = Lease(run.path)
    lease.acquire()
    run.create(before, lease)
    lease.release()
    file = world / "scenes" / "items.json"
    content = json.loads(file.read_text())
    del content["features"][1:]
    file.write_text(json.dumps(content))
    assert len(make_plan(before.recipe).only.catalogue.rows) == 1
    resumed = make_plan(before.recipe, resume=True)
    assert resumed.only.catalogue.rows == before.only.catalogue.rows
    assert resumed.only.blocks == before.only.blocks
    file.unlink()
    assert len(make_plan(before.recipe, resume=True).only.catalogue.rows) == 3
    (world / "map.run" / "items.parquet").unlink()
    with pytest.raises(OutputError, match=r"items\.parquet .*put it back from a copy"):
        make_plan(before.recipe, resume=True)


def test_planning_writes_nothing(world):
    before = sorted(world.rglob("*"))
    plan()
    assert sorted(world.rglob("*")) == before
