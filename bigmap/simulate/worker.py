"""A process that renders parts of a request; :mod:`bigmap.simulate.pool` starts it.

The first line of its input is the request and the cache, each further one the number of a part
in the request's list; it answers each part with a line: ``null``, or the error.
"""

from __future__ import annotations

import datetime as dt
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from bigmap.errors import BigmapError
from bigmap.simulate.scenes import (
    SceneRequest,
    explain_failures,
    list_request_parts,
    write_part,
)


def serve_tasks() -> None:
    """Answer the lines of the standard input until it ends."""
    # An exception, not a plain end: files that are half written must be removed.
    signal.signal(signal.SIGTERM, _stop)
    setup = json.loads(sys.stdin.readline() or "null")
    if setup is None:
        return
    request, cache = read_setup(setup)
    parts = list_request_parts(request)
    for line in sys.stdin:
        answer = None
        try:
            with explain_failures(cache):
                write_part(request, parts[json.loads(line)], cache)
        except BigmapError as error:
            answer = {"kind": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def read_setup(setup: dict[str, Any]) -> tuple[SceneRequest, Path]:
    """Return the request and the cache from their JSON."""
    fields = dict(setup["request"])
    for name in ("bounds", "bands"):
        fields[name] = tuple(fields[name])
    for name in ("start", "end"):
        fields[name] = dt.date.fromisoformat(fields[name])
    return SceneRequest(**fields), Path(setup["cache"])


def _stop(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
