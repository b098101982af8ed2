"""Rendering in processes of their own: same bytes, same errors, nothing left behind."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bigmap.errors import OutputError, RunError
from bigmap.simulate import list_request_parts, pool, scenes, write_scenes
from tests.unit.simulate.test_simulate import list_files, make_request

BOUNDS = 452_000.0, 4_630_500.0, 455_000.0, 4_631_000.0
TWO_PARTS = make_request(bounds=BOUNDS, bands=("red",), end=dt.date(2024, 5, 1))
SCRIPT = """
import datetime as dt
from pathlib import Path
from bigmap.simulate import SceneRequest, scenes, write_scenes
scenes.count_cores = lambda: 2
scenes.PIECES_PER_PROCESS = 1
print("script runs", flush=True)
write_scenes({request!r}, Path({cache!r}))
"""


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "count_cores", lambda: 2)
    monkeypatch.setattr(scenes, "PIECES_PER_PROCESS", 1)


def count_children() -> int:
    commands = [child.cmdline() for child in psutil.Process().children()]
    return sum("serve_tasks" in " ".join(command) for command in commands)


def start_script(cache: Path) -> subprocess.Popen[str]:
    code = SCRIPT.format(
        request=replace(TWO_PARTS, end=dt.date(2024, 5, 31)), cache=str(cache)
    ).replace("datetime.date", "dt.date")
    script = cache.parent / "script.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(scenes.__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def test_processes_write_the_same_bytes_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(list_request_parts(TWO_PARTS)) == 2
    monkeypatch.setattr(scenes, "PIECES_PER_PROCESS", 1)
    for cores in (1, 2):
        monkeypatch.setattr(scenes, "count_cores", lambda cores=cores: cores)
        write_scenes(TWO_PARTS, tmp_path / str(cores))
    first, second = (list_files(tmp_path / name) for name in ("1", "2"))
    assert {name: content for name, (_, content) in first.items()} == {
        name: content for name, (_, content) in second.items()
    }
    assert count_children() == 0


def test_an_error_of_a_process_is_that_of_one(
    tmp_path: Path, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="simulated scenes cannot be kept there") as many:
        write_scenes(TWO_PARTS, cache)
    monkeypatch.setattr(scenes, "count_cores", lambda: 1)
    with pytest.raises(OutputError) as one:
        write_scenes(TWO_PARTS, cache)
    assert str(many.value) == str(one.value)
    assert count_children() == 0


def test_a_process_that_dies_is_one_sentence(
    tmp_path: Path, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_PROGRAM", "import os; os._exit(9)")
    with pytest.raises(RunError, match="ended with code 9"):
        write_scenes(TWO_PARTS, tmp_path)


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once_and_stops_cleanly(tmp_path: Path) -> None:
    """Ctrl-C, which the terminal sends to the whole group, leaves no process and no half file."""
    cache = tmp_path / "cache"
    script = start_script(cache)
    deadline = time.monotonic() + 30
    while not list(cache.rglob("item.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(script.pid, signal.SIGINT)
    output, errors = script.communicate(timeout=120)
    assert output.count("script runs") == 1
    assert "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(script.pid, 0)
    written = [file for file in cache.rglob("*") if file.is_file()]
    assert written
    assert not [file for file in written if file.name.startswith(".")]


@pytest.mark.slow
def test_processes_end_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    process = start_script(tmp_path / "cache")
    caller = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        children = caller.children()
    assert len(children) == 2
    time.sleep(2)  # they are at work
    process.kill()
    process.communicate()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]
