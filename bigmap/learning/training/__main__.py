"""One of the processes that :mod:`bigmap.learning.training.launching` starts.

The first line of its input is the job; the end of its input means that whoever started it has
gone, and ends it. What it has to say it writes to its output as lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict

from bigmap.config import parse_recipe
from bigmap.errors import BigmapError, LostRankError
from bigmap.learning.training.relaying import RelayingReporter
from bigmap.learning.training.starting import train_recipe

STOPPED = 75
USER_ERROR = 2


def main() -> int:
    """Train as one process, and return its exit code."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        summary = train_recipe(
            parse_recipe(job["recipe"], origin="recipe"),
            resume=job["resume"],
            overwrite=job["overwrite"],
            reporter=RelayingReporter(_say),
        )
    except BigmapError as error:
        _say(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}))
        return STOPPED + 1 if isinstance(error, LostRankError) else USER_ERROR
    if os.environ["RANK"] == "0":
        _say(json.dumps({"summary": asdict(summary)}))
    return summary.exit_code


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
