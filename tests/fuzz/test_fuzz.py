"""Mutated inputs of all kinds bring success or one clear line, and the hunt sees what does not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from bigmap.errors import CatalogError
from tests.fuzz import hunting
from tests.fuzz.corpus import read_forms, write_corpus
from tests.fuzz.hunting import Hunt, describe, judge, share_out
from tests.fuzz.targets import TARGETS, Target

SHORT, SHORT_SEED = share_out(2_000, list(TARGETS)), 0
LONG, LONG_SEED = share_out(50_000, list(TARGETS)), 1

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "corpus"
    write_corpus(folder)
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_end_in_success_or_one_clear_line(
    corpus: Path, tmp_path: Path, name: str
) -> None:
    result = Hunt(TARGETS[name], corpus, tmp_path, SHORT_SEED).run(SHORT[name])
    assert not result.failures, describe(result, tmp_path)
    assert result.outcomes.total() == SHORT[name]


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutations_end_in_success_or_one_clear_line(
    corpus: Path, tmp_path: Path, name: str
) -> None:
    result = Hunt(TARGETS[name], corpus, tmp_path, LONG_SEED).run(LONG[name])
    assert not result.failures, describe(result, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_mutated_is_accepted_as_it_was(corpus: Path, tmp_path: Path, name: str) -> None:
    with hunting.guard() as clock:
        for files in read_forms(corpus / name).values():
            for check in TARGETS[name].checks:
                hunting.write_files(files, tmp_path / "case")
                assert judge(check, tmp_path / "case", clock) == ("accepted", [])


def test_a_seed_gives_the_same_mutations(corpus: Path) -> None:
    for name in ("recipes", "parquet", "run"):
        hunt = Hunt(TARGETS[name], corpus, corpus.parent, seed=3)
        forms = hunt.read_forms()
        cases = [[hunt.make_case(forms, number) for number in range(20)] for _ in "ab"]
        assert cases[0] == cases[1]
        assert sum(case not in forms.values() for case in cases[0]) > 15


def die(case: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def stay(case: Path) -> None:
    signal.pause()


def wait(case: Path) -> None:
    time.sleep(86_400)


def take_memory(case: Path) -> None:
    bytearray(16 << 30)


def fail(case: Path) -> None:
    raise KeyError("links")


def say_too_much(case: Path) -> None:
    error = CatalogError()
    error.args = ("first line\nTraceback of <Item at 0x7f00aabbccdd>",)  # as no constructor lets
    raise error


@pytest.mark.parametrize(
    ("check", "kinds"),
    [
        (die, {f"exit {-signal.SIGSEGV}"}),
        (stay, {"hang"}),
        (wait, {"TooLongError"}),
        (take_memory, {"MemoryError"}),
        (fail, {"KeyError"}),
        (
            say_too_much,
            {
                f"message {fault}"
                for fault in ("of several lines", "with a traceback", "with an address")
            },
        ),
    ],
)
def test_the_hunt_sees_every_kind_of_failure_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: hunting.Check, kinds: set[str]
) -> None:
    if check is stay:  # others may take their time on a busy machine
        monkeypatch.setattr(hunting, "SILENCE_S", 5)
    form = tmp_path / "corpus" / check.__name__ / "form"
    form.mkdir(parents=True)
    (form / "a.json").write_text("[1, 2, 3]")
    target = Target(check.__name__, (check,))
    result = Hunt(target, tmp_path / "corpus", tmp_path / "work").run(2)
    assert {(failure.number, failure.kind) for failure in result.failures} == {
        (number, kind) for number in range(2) for kind in kinds
    }
    assert result.outcomes == {"failed": 2}
    assert (tmp_path / "work" / f"{check.__name__}-0-0").is_dir()
