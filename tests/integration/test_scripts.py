"""Scripts that start workers: with a guard, without one, from nowhere, and in a worker."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from bigmap.clusters import Cluster
from bigmap.clusters.local import check_process, start_local
from bigmap.config import parse_recipe
from bigmap.errors import ClusterError
from tests.integration.small_world import raw_recipe

CALL = "from bigmap.clusters.local import check_process\n"
BARE = f"{CALL}check_process()\n"
GUARDED = f'{CALL}if __name__ == "__main__":\n    check_process()\n'
HIDDEN = f"import logging\n{CALL}logging.getLogger(__name__)\ncheck_process()\n"
SENTENCE = r"cluster: each worker imports .*script\.py, .* put what it does under if __name__"


def run_as_main(monkeypatch, file: Path, source: str) -> None:
    """Run lines as Python runs a script."""
    main = ModuleType("__main__")
    main.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(source, str(file), "exec"), vars(main))


@pytest.fixture
def script(tmp_path: Path):
    def write(source: str) -> Path:
        file = tmp_path / "script.py"
        file.write_text(source)
        return file

    return write


def test_a_script_without_a_guard_is_refused_at_once(script, monkeypatch):
    with pytest.raises(ClusterError, match=SENTENCE):
        run_as_main(monkeypatch, script(BARE), BARE)


def test_a_script_with_a_guard_goes_on(script, monkeypatch):
    run_as_main(monkeypatch, script(GUARDED), GUARDED)


def test_functions_of_a_script_may_be_called_from_elsewhere(script, monkeypatch):
    """As at the prompt of ``python -i``: an import of the script starts nothing."""
    source = f"{CALL}def start():\n    check_process()\n"
    run_as_main(monkeypatch, script(source), source)
    sys.modules["__main__"].start()


def test_a_script_from_stdin_is_told_to_be_saved(monkeypatch):
    with pytest.raises(ClusterError, match="but <stdin> is no file; save it as one"):
        run_as_main(monkeypatch, Path("<stdin>"), GUARDED)


def test_what_has_no_script_goes_on(monkeypatch):
    """``python -c``, notebooks, and modules that workers do not import."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    check_process()
    main.__file__, main.__spec__ = "gone/__main__.py", SimpleNamespace(name="gone.__main__")
    check_process()


def test_a_worker_starts_no_workers(monkeypatch):
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    local = parse_recipe(raw_recipe())
    with pytest.raises(ClusterError, match="this process is a worker, which can start none"):
        Cluster(local)
    Cluster(parse_recipe(raw_recipe(cluster={"kind": "slurm", "interface": "lo"})))


@pytest.mark.slow
def test_a_guard_that_is_not_one_is_found_out_when_workers_start(script, monkeypatch, capfd):
    """The lines mention ``__name__`` without a guard, so only an import of them tells."""
    run_as_main(monkeypatch, script(HIDDEN), HIDDEN)
    with (
        pytest.raises(ClusterError, match=SENTENCE),
        start_local(workers=1, blocks=1, memory_gb=1.0),
    ):
        raise AssertionError("no worker can have started")
    assert "Traceback" not in capfd.readouterr().err


def test_a_plain_script_ends_with_one_sentence(script):
    """The whole of it, as a user would see it."""
    file = script(
        "import bigmap\nfrom bigmap.config import parse_recipe\n"
        f"recipe = parse_recipe({raw_recipe()!r})\n"
        "try:\n    bigmap.run(recipe)\nexcept bigmap.BigmapError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, str(file)], cwd=file.parent, capture_output=True, text=True, check=True,
        timeout=120,
    )  # fmt: skip
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"cluster: each worker imports {file}")
    assert done.stderr == ""
