"""The signals by which users and schedulers stop a job: raised, or noted and obeyed later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bigmap.errors import StoppedError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn a signal into an orderly end.

    Inside, the first of them raises; the end that follows is not disturbed by more of them, only
    by a second Ctrl-C.

    Raises
    ------
    StoppedError
        When SIGINT, SIGTERM or SIGUSR1 comes.
    """
    if signal.getsignal(signal.SIGTERM) is _raise_stopped:
        yield
        return
    with _handle(_raise_stopped):
        yield


class StopFlag:
    """Whether a signal has come.

    A process that trains with others must not stop in the middle of a sum over all of them, so
    that a signal raises nothing; only a second Ctrl-C does.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self) -> bool:
        """Tell whether to stop."""
        return self.signal is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal."""
        del frame
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextmanager
def note_signals() -> Iterator[StopFlag]:
    """Note SIGINT, SIGTERM and SIGUSR1 inside the block."""
    flag = StopFlag()
    with _handle(flag.note):
        yield flag


@contextmanager
def _handle(handler: Handler) -> Iterator[None]:
    """Let a handler have the signals; outside the main thread none come."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    del frame
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise StoppedError(
        f"stopped by {signal.Signals(number).name}: go on with the same command and --resume"
    )
