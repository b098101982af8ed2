"""Errors on their way from a worker to the driver."""

from types import SimpleNamespace

import pytest
import rasterio
from distributed import core
from distributed.protocol import pickle
from rasterio.errors import RasterioIOError

from bigmap import runner
from bigmap.clusters import mapping, ranks, scenes
from bigmap.errors import ReadError, drop_causes
from bigmap.items import ItemTable


def open_nothing():
    try:
        rasterio.open("/nowhere/at-all.tif")
    except RasterioIOError as error:
        raise ReadError("at-all.tif: cannot be read") from error


def travel(error):
    """Bring an error to where a driver would get it."""
    return pickle.loads(core.error_message(error)["exception"].data)


def catch(task, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever comes
        task(*arguments)
    return caught.value


@drop_causes()
def read_on_a_worker():
    open_nothing()


def test_an_error_keeps_its_type_on_the_driver():
    assert type(travel(catch(open_nothing))) is Exception, "or this test shows nothing"
    error = travel(catch(read_on_a_worker))
    assert (type(error), str(error)) == (ReadError, "at-all.tif: cannot be read")


def test_errors_of_others_keep_their_types_too():
    opens = drop_causes()(rasterio.open)
    assert type(travel(catch(opens, "/nowhere/at-all.tif"))) is RasterioIOError


def fail(*_):
    open_nothing()


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (runner, lambda: runner._call_task("p", "key", (), ItemTable.of(()).to_bytes())),
        (mapping, lambda: mapping._call("p", "item")),
        (scenes, lambda: scenes._render("p", None)),
        (ranks, lambda: ranks._sit(fail, None, "topic")),
    ],
    ids=["blocks", "tasks", "scenes", "training"],
)
def test_tasks_of_all_kinds_drop_what_cannot_travel(monkeypatch, module, call):
    held = SimpleNamespace(task=fail, job=None, tells_start=False, pool=SimpleNamespace(do=fail))
    monkeypatch.setattr(module, "get_worker", lambda: SimpleNamespace(plugins={"p": held}))
    assert type(travel(catch(call))) is ReadError
