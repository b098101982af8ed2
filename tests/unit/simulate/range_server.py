"""A local HTTP server of simulated scenes that answers range requests, as object stores do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


class RangeHandler(SimpleHTTPRequestHandler):
    """Serve a folder; the standard handler knows no ranges."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> BytesIO | BinaryIO | None:
        """Answer a request for part of a file; leave all else to the standard handler."""
        wanted = _RANGE.match(self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if not wanted or not file.is_file():
            return super().send_head()
        size = file.stat().st_size
        first = int(wanted[1])
        last = min(int(wanted[2]) if wanted[2] else size - 1, size - 1)
        if first > last:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return None
        with file.open("rb") as source:
            source.seek(first)
            content = source.read(last - first + 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(str(file)))
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        return BytesIO(content)

    def end_headers(self) -> None:
        """Say that ranges are welcome."""
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine, from a process of its own, while the context lasts.

    It needs its own process because GDAL waits for an answer without letting other threads run.

    Parameters
    ----------
    folder
        For example the cache of :func:`bigmap.simulate.scenes.write_scenes`, whose lists of
        items have relative hrefs and so work from here too.

    Yields
    ------
    str
        Address of the folder, without a slash at its end.
    """
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            if not port:
                raise RuntimeError(f"{folder}: the local server of scenes did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def serve_forever(folder: str) -> None:
    """Serve for ever; the first line of the output is the port."""
    handler = partial(RangeHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    serve_forever(sys.argv[1])
