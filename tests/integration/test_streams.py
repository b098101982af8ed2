"""What is printed, into pipes, full discs and terminals of any encoding, as a shell sees it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.small_world import write_recipe, write_scenes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    write_scenes(folder / "scenes")
    write_recipe(folder / "recipe.yaml")
    return folder


def call(folder, command, **environment):
    """Run a line of the shell, in which ``bigmap`` is this one; its code is that of the first."""
    line = f'set -o pipefail; bigmap() {{ {sys.executable} -m bigmap "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, check=False, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


def test_an_encoding_without_a_sign_shows_a_question_mark(folder):
    done = call(folder, "bigmap plan recipe.yaml", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"small: 1 km? in EPSG:32631" in done.stdout


def test_the_locale_of_c_is_enough(folder):
    done = call(folder, "bigmap plan no-\xe9.yaml", LC_ALL="C")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"no such file" in done.stderr


@pytest.mark.parametrize("more", ["", " --json"])
def test_a_reader_that_has_gone_ends_it_silently(folder, more):
    done = call(folder, f"bigmap plan recipe.yaml{more} | true")
    assert (done.returncode, done.stdout, done.stderr) == (141, b"", b"")


def test_a_full_disc_behind_the_output_is_one_sentence(folder):
    done = call(folder, "bigmap plan recipe.yaml > /dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        b"bigmap: what this command prints cannot be written (No space left on device); make room "
        b"for it\n"
    )
    assert call(folder, "bigmap plan recipe.yaml > /dev/full 2>&1").returncode == 2


def test_interrupted_imports_are_one_line(folder):
    slow = folder / "slow"
    slow.mkdir()
    # Stands for a library that takes long to import.
    (slow / "typer.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    )
    done = call(folder, "bigmap plan recipe.yaml", PYTHONPATH=f"{slow}:{ROOT}")
    assert (done.returncode, done.stdout) == (130, b"")
    assert done.stderr == b"bigmap: interrupted\n"
