"""A process that renders the scenes of a request; :mod:`bigmap.simulate.pool` starts it.

It takes pickled objects: first the request and the cache, then tasks. It answers each task with
a line of JSON: ``null``, or the error.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bigmap.errors import BigmapError
from bigmap.simulate.requests import SceneRequest
from bigmap.simulate.scenes import write_task

WATCH_S = 1.0
"""How often a process looks whether its caller still lives."""


def serve_tasks() -> None:
    """Answer the tasks of the standard input until it ends."""
    # An exception, not a plain end: files that are half written must be removed.
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_caller, args=(os.getppid(),), daemon=True).start()
    try:
        setup: tuple[SceneRequest, Path] = _receive()
        request, cache = setup
        while True:
            task = _receive()
            answer = None
            try:
                write_task(request, task, cache)
            except BigmapError as error:
                answer = {"kind": type(error).__name__, "message": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    except EOFError:
        return  # the caller has no more tasks, or has ended
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_with_caller(caller: int) -> None:
    """Stop where the caller was killed: the end of its pipe shows between tasks only."""
    while os.getppid() == caller:
        time.sleep(WATCH_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _receive() -> Any:
    return pickle.load(sys.stdin.buffer)  # noqa: S301 - the caller is bigmap itself


def _stop(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
