"""How a command ends: its exit code, and one sentence where the user must change something."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import NoReturn

import typer
from rich.console import Console

from bigmap.cli.streams import PIPE_CLOSED, StreamError, drop_streams, flush_streams, open_streams
from bigmap.errors import BigmapError, LostClusterError, LostRankError, StoppedError
from bigmap.redaction import redact

USER_ERROR = 2
INTERRUPTED = 130
"""Exit code after Ctrl-C, which typer gives."""
STOPPED = 75


def run_app(app: typer.Typer, arguments: list[str]) -> NoReturn:
    """Run a command line; what a user can mend ends in one sentence and exit code 2."""
    open_streams()
    try:
        try:
            code = _run_command(app, arguments)
        finally:
            flush_streams()
    except StreamError as error:
        code = PIPE_CLOSED if error.is_closed_pipe else USER_ERROR
        if not error.is_closed_pipe:
            with suppress(StreamError):
                say(f"what this command prints cannot be written ({error}); make room for it")
        drop_streams()
    sys.exit(code)


def _run_command(app: typer.Typer, arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    logging.basicConfig(level=logging.CRITICAL)
    _show_log("bigmap.simulate")
    _show_log("bigmap.scenes.catalog")
    try:
        code: int = app(arguments or ["--help"], prog_name="bigmap", standalone_mode=False)
    except (StoppedError, LostClusterError, LostRankError) as error:
        _fail(str(error), code=STOPPED)
    except BigmapError as error:
        _fail(str(error))
    except typer.TyperException as error:
        _fail(f"{error.format_message().rstrip('.')}; see bigmap --help")
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _fail("interrupted", code=INTERRUPTED)
    return code


def _show_log(name: str) -> None:
    """Show what a part of bigmap says before a long wait, apart from the results."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger(name)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _fail(message: str, *, code: int = USER_ERROR) -> NoReturn:
    """Print a message as one line and end with an exit code."""
    say(message)
    sys.exit(code)


def say(message: str) -> None:
    """Print a message as one line on standard error."""
    line = " ".join(redact(message).split())
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"bigmap: {line}", markup=False)
