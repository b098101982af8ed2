"""The hunt: mutations go to a target in a process of its own, and what escapes is collected.

Only success or a :class:`~bigmap.errors.BigmapError` of one printable line may come. Anything else
is a failure, and so is a process that dies, hangs, or takes too much memory or time. The parent
knows which mutation the process was at, so that the hunt goes on behind it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any
from unittest import mock

from bigmap.errors import BigmapError
from tests.fuzz.corpus import ROOT, read_files, read_forms, write_files
from tests.fuzz.mutating import Files, mutate_files
from tests.fuzz.targets import TARGETS, Check, Target

MEMORY_BYTES = 4 << 30
"""What a mutation may take beyond what is taken before the first."""
CPU_S = 20
SLEEP_S = 300
"""How long a mutation may ask to wait; it does not wait."""
SILENCE_S = 300
"""Time on the clock after which a process counts as hanging: far more than a busy machine takes."""
OUTCOMES = ("failed", "refused", "accepted")
"""Of a mutation; that which comes first in one of its checks counts."""
MOST_LETTERS = 2_000
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


class TooLongError(BaseException):
    """A mutation takes too long; no handler of bigmap may catch it."""


@dataclass(frozen=True)
class Failure:
    """What a mutation brought to light."""

    target: str
    seed: int
    number: int
    kind: str
    """Type of the exception, or what is wrong with the message."""
    where: str
    """Innermost function of bigmap."""
    message: str

    @property
    def group(self) -> tuple[str, str, str]:
        """What failures of one cause have in common."""
        return self.target, self.where, self.kind

    def place(self, work: Path) -> Path:
        """Return the folder in which the input is kept, if it is the first of its group."""
        return work / f"{self.target}-{self.seed}-{self.number}"


@dataclass
class Result:
    """What came of the mutations of a target."""

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, outcome: str, failures: Sequence[Failure]) -> None:
        """Count a mutation."""
        self.outcomes[outcome] += 1
        self.failures += failures

    def groups(self) -> dict[tuple[str, str, str], list[Failure]]:
        """Return the failures, those of one cause together."""
        groups = defaultdict(list)
        for failure in self.failures:
            groups[failure.group].append(failure)
        return dict(sorted(groups.items()))


@dataclass(frozen=True)
class Hunt:
    """Mutations of one target; the same for the same seed and corpus."""

    target: Target
    corpus: Path
    """Of :func:`tests.fuzz.corpus.write_corpus`."""
    work: Path
    """Where files go; failing ones stay there, the first of each group."""
    seed: int = 0

    @property
    def case(self) -> Path:
        """The folder in which each mutated input lies in its turn."""
        return self.work / f"{self.target.name}-case"

    @property
    def log(self) -> Path:
        """What the process has written, such as the stack at which it died."""
        return self.work / f"{self.target.name}.log"

    def read_forms(self) -> dict[str, Files]:
        """Return the valid inputs."""
        return read_forms(self.corpus / self.target.name)

    def make_case(self, forms: dict[str, Files], number: int) -> Files:
        """Return a mutated input."""
        rng = random.Random(f"{self.target.name} {self.seed} {number}")
        return self.target.mend(mutate_files(forms[rng.choice(sorted(forms))], rng))

    def run(self, mutations: int) -> Result:
        """Try so many mutations, in as many processes as it takes."""
        self.work.mkdir(parents=True, exist_ok=True)
        result = Result(self.target.name)
        while (number := result.outcomes.total()) < mutations:
            self._follow(range(number, mutations), result)
        return result

    def _follow(self, numbers: range, result: Result) -> None:
        """Gather what a process finds until it has done all or is lost, which is a failure."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        ours, theirs = context.Pipe()
        process = context.Process(target=self._work, args=(theirs, numbers))
        process.start()
        theirs.close()
        for number in numbers:
            try:
                if not ours.poll(SILENCE_S):
                    raise TimeoutError
                result.add(*ours.recv())
            except TimeoutError:
                process.kill()
                result.add("failed", [self._explain_loss(number, "hang")])
                break
            except EOFError:
                process.join()
                kind = f"exit {process.exitcode}"
                result.add("failed", [self._explain_loss(number, kind)])
                break
        process.join()

    def _explain_loss(self, number: int, kind: str) -> Failure:
        """Tell what a lost process was at, and keep its input."""
        lines = self.log.read_text(errors="replace").splitlines()
        where = next((line.strip() for line in lines if f'"{ROOT}/bigmap/' in line), "nowhere")
        message = " | ".join(line.strip() for line in lines[-40:])
        failure = Failure(self.target.name, self.seed, number, kind, where, message)
        shutil.copytree(self.case, failure.place(self.work), dirs_exist_ok=True)
        return failure

    def _work(self, pipe: Connection, numbers: range) -> None:
        """Try mutations in a process of their own, and say what came of each."""
        with self.log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.enable()
        limit_memory()
        forms, known = self.read_forms(), set()
        with guard() as clock:
            for number in numbers:
                files = self.make_case(forms, number)
                write_files(files, self.case)
                judged = [judge(check, self.case, clock) for check in self.target.checks]
                failures = [
                    Failure(self.target.name, self.seed, number, *each)
                    for _, found in judged
                    for each in found
                ]
                for failure in failures:
                    if failure.group not in known:
                        known.add(failure.group)
                        write_files(files, failure.place(self.work))
                pipe.send((min((outcome for outcome, _ in judged), key=OUTCOMES.index), failures))
        os._exit(0)  # threads that broken files have started must not keep the process


def judge(check: Check, case: Path, clock: Clock) -> tuple[str, list[tuple[str, str, str]]]:
    """Do a check; return its outcome, and what was wrong: kind, place and message."""
    try:
        with clock:
            check(case)
    except BigmapError as error:
        faults = find_faults(str(error))
        where = locate(error.__traceback__)
        found = [
            (f"message {fault}", where, f"{type(error).__name__}: {error}") for fault in faults
        ]
        return ("failed" if found else "refused"), found
    except BaseException as error:  # noqa: BLE001 - whatever escapes is what is hunted
        text = "".join(traceback.format_exception_only(error)).strip()
        return "failed", [(type(error).__name__, locate(error.__traceback__), text[:MOST_LETTERS])]
    return "accepted", []


def find_faults(message: str) -> list[str]:
    """Tell what keeps a message from being one clear line."""
    faults = {
        "of several lines": len(message.splitlines()) > 1,
        "not printable": not message.replace("\n", "").isprintable(),
        "too long": len(message) >= MOST_LETTERS,
        "with a traceback": "Traceback" in message,
        "with an address": ADDRESS.search(message) is not None,
        "empty": not message.strip(),
    }
    return [fault for fault, is_so in faults.items() if is_so]


def locate(trace: TracebackType | None) -> str:
    """Return the innermost function of bigmap."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if frame.filename.startswith(f"{ROOT}/bigmap/")]
    inner = (ours or frames)[-1]
    return f"{inner.filename.removeprefix(f'{ROOT}/')}:{inner.lineno} {inner.name}"


def limit_memory() -> None:
    """Bound the memory of this process, counted from what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Clock:
    """Bounds the time of the processor and of sleep in its context."""

    slept_s = 0.0
    most_s = 0.0

    def __enter__(self) -> None:
        self.most_s = self.slept_s + SLEEP_S
        signal.setitimer(signal.ITIMER_PROF, CPU_S)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def sleep(self, seconds: float) -> None:
        """Let time pass without waiting."""
        self.slept_s += seconds
        if self.slept_s > self.most_s:
            raise TooLongError(f"sleeps for more than {SLEEP_S} s")


@contextlib.contextmanager
def guard() -> Iterator[Clock]:
    """Keep a process from the network, from waiting and from endless work."""
    clock = Clock()
    connect, resolve, monotonic = socket.socket.connect, socket.getaddrinfo, time.monotonic

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOCAL_HOSTS:
            raise ConnectionRefusedError(111, "no network here")
        connect(self, address)

    def resolve_here(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in (*LOCAL_HOSTS, None):
            raise socket.gaierror(-2, "no network here")
        return resolve(host, *arguments, **options)

    def tell_time() -> float:
        return monotonic() + clock.slept_s

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"more than {CPU_S} s of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    try:
        with (
            mock.patch.object(socket.socket, "connect", connect_here),
            mock.patch.object(socket, "getaddrinfo", resolve_here),
            mock.patch.object(time, "sleep", clock.sleep),
            mock.patch.object(time, "monotonic", tell_time),
        ):
            yield clock
    finally:
        signal.signal(signal.SIGPROF, before)


def share_out(mutations: int, names: Sequence[str]) -> dict[str, int]:
    """Divide mutations between targets."""
    total = sum(TARGETS[name].share for name in names)
    return {name: -(-mutations * TARGETS[name].share // total) for name in names}


def describe(result: Result, work: Path) -> str:
    """Return what came of a target's mutations, as text."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.outcomes.items()))
    lines = [f"{result.target}: {counts}"]
    for (_, where, kind), failures in result.groups().items():
        first = failures[0]
        lines += [
            f"  {len(failures)} x {kind} in {where}",
            f"    {first.message[:300]!r}",
            f"    {first.place(work)}",
        ]
    return "\n".join(lines)


def replay(folder: Path, target: Target) -> None:
    """Give a target the files of a folder, and let everything through."""
    case = folder.with_name(f"{folder.name}-replay")
    write_files(read_files(folder), case)
    with guard() as clock:
        for check in target.checks:
            try:
                with clock:
                    check(case)
            except BigmapError as error:
                sys.stdout.write(f"{type(error).__name__}: {error!s}\n")
