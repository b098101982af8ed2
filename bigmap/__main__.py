"""``bigmap`` and ``python -m bigmap``: Ctrl-C ends with one line while all else is imported too."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell lets jobs in the background ignore it
        signal.signal(signal.SIGINT, _leave)
    from bigmap.cli import main as run  # noqa: PLC0415 - takes seconds

    signal.signal(signal.SIGINT, before)
    run()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """End at once: libraries would turn an exception amid their import into others."""
    del number, frame
    os.write(2, b"bigmap: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
