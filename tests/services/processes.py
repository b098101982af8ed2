"""Start a real server on loopback, wait until it answers, and stop it for sure."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"
START_LIMIT_S = 180.0
STOP_LIMIT_S = 10.0


class MissingProgramError(RuntimeError):
    """A program that a service needs is not installed."""


def find_program(name: str, *folders: str | Path) -> str:
    """Return the path of a program, looked for in ``folders`` and then in PATH and sbin."""
    places = [*map(str, folders), os.environ.get("PATH", ""), "/usr/sbin"]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise MissingProgramError(f"{name} is not installed")
    return found


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def accepts_connections(port: int) -> bool:
    """Tell whether something on loopback accepts connections at a port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the foreground of its own session until the block ends.

    Parameters
    ----------
    command
        The server; it must not put itself in the background.
    log
        File for what it prints; its end is shown when it does not start.
    ready
        Tells whether it answers; asked until it does, for three minutes at most.
    env
        Settings on top of the environment.
    user
        User to run as, where this process is root.
    stop_signal
        What asks the server to stop, also when this process is killed.
    """
    prefix = [find_program("setpriv"), "--pdeathsig", stop_signal.name.removeprefix("SIG")]
    if user is not None and os.geteuid() == 0:
        prefix += ["--reuid", user, "--regid", user, "--init-groups"]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*prefix, *command],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, ready, log)
        yield process
    finally:
        _stop(process, stop_signal)


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path
) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            state = f"ended with {process.returncode}" if process.returncode else "does not answer"
            raise RuntimeError(
                f"{process.args}: {state}\n{log.read_text(errors='replace')[-4000:]}"
            )
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(stop_signal)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
    # Children that outlived the server, or the server itself where it did not obey.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_LIMIT_S)
