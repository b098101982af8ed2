"""Errors on their way from a worker to the driver, and their messages."""

from types import SimpleNamespace

import pytest
import rasterio
from distributed import core
from distributed.protocol import pickle
from rasterio.errors import RasterioIOError

from bigmap.clusters import tasks
from bigmap.clusters.tasks import Work
from bigmap.errors import CatalogError, ReadError, drop_causes


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


def test_a_task_drops_what_cannot_travel(monkeypatch):
    worker = SimpleNamespace(plugins={"work": Work(fail)}, address="", log_event=lambda *_: None)
    monkeypatch.setattr(tasks, "get_worker", lambda: worker)
    assert type(travel(catch(tasks.do_task, "work", "key", "item"))) is ReadError


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a.json: is not JSON; correct source.files", "a.json: is not JSON; correct source.files"),
        ("a.parquet (bad thrift: \x0e\n); mend it", r"a.parquet (bad thrift: \x0e ); mend it"),
        ("first\r\n\tsecond\n", "first second"),
        ("bad <ast.Name object at 0x7f49a8bb5d50>: mend it", "bad <ast.Name object>: mend it"),
        ("\x1b[31mred\u202etxt \ud800 é", r"\x1b[31mred\u202etxt \ud800 é"),
    ],
)
def test_a_message_is_one_printable_line(message, line):
    error = CatalogError(message)
    assert str(error) == line
    assert str(travel(error)) == line


def test_a_long_message_keeps_what_it_is_about_and_what_to_do():
    line = str(CatalogError(f"a.json: holds {'a-' * 100_000}; correct source.files"))
    assert line.startswith("a.json: holds a-a-")
    assert line.endswith("a-; correct source.files")
    assert len(line) < 1_500
    assert str(CatalogError(line)) == line
