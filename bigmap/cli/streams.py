"""Standard output and error: in any encoding, and with one end where they cannot be written."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from bigmap.redaction import redact

PIPE_CLOSED = 128 + signal.SIGPIPE
"""What a shell shows of a program that wrote to a pipe which nobody reads any more."""


class StreamError(Exception):
    """Standard output or error cannot be written; apart from faults of other files and pipes."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.is_closed_pipe = error.errno == errno.EPIPE


class _Output(io.FileIO):
    """A standard stream below its buffer."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise StreamError(error) from None


def open_streams() -> None:
    """Let standard output and error show a question mark for what their encoding lacks.

    Their faults become :class:`StreamError`, and what is not foreseen is shown without secrets.
    Streams that something else has put in their place stay.
    """
    sys.excepthook = _show_fault
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue
        stream.flush()
        raw = _Output(stream.fileno(), "w", closefd=False)
        buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                buffer,
                encoding=stream.encoding,
                errors="replace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            ),
        )


def flush_streams() -> None:
    """Write what is waiting, while a fault can still be told.

    Raises
    ------
    StreamError
        If it cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def drop_streams() -> None:
    """Throw away what is still waiting: it would fail again when Python ends."""
    with Path(os.devnull).open("wb") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)


def _show_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
