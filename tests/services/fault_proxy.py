"""A reverse proxy that spoils chosen answers, for tests of what a reader survives.

A process of its own, because a reader may hold Python's global lock while it waits for an
answer. Run as ``python fault_proxy.py PORT UPSTREAM_PORT``; faults are posted to ``CONTROL``.
"""

from __future__ import annotations

import fnmatch
import http.client
import json
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTROL = "/-/faults"
LOOPBACK = "127.0.0.1"
BODY_KINDS = ("truncate", "reset", "short-range", "stall")
KINDS = ("status", "html", *BODY_KINDS)
STALL_S = 60.0
"""Longer than any time limit of a test."""
PASSED_ON = ("Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "Last-Modified")


@dataclass
class Fault:
    """What to do to the next ``times`` answers whose path matches a glob pattern.

    ``status`` answers with that code; ``html`` with a page and 200; ``truncate`` closes after
    half of the body; ``reset`` resets the connection there; ``short-range`` sends half of the
    range as if it were the whole; ``stall`` sends half and then nothing. What spoils a body leaves
    HEAD alone.
    """

    path: str
    kind: str
    times: int = 3
    status: int = 503

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(KINDS)}")


class FaultProxy(ThreadingHTTPServer):
    """The proxy with its faults and the requests it has seen."""

    daemon_threads = True

    def __init__(self, port: int, upstream_port: int) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.upstream_port = upstream_port
        self.lock = threading.Lock()
        self.faults: list[Fault] = []
        self.seen: list[dict[str, str | None]] = []

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the first fault that is meant for a request, and count it."""
        with self.lock:
            for fault in self.faults:
                fits = method == "GET" or fault.kind not in BODY_KINDS
                if fits and fault.times > 0 and fnmatch.fnmatch(path, fault.path):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Passes GET and HEAD on, spoiled where a fault says so."""

    server: FaultProxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.faults.append(Fault(**json.loads(body)))
        self.answer_json([])

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.faults.clear()
            self.server.seen.clear()
        self.answer_json([])

    def do_HEAD(self) -> None:
        self.pass_on()

    def do_GET(self) -> None:
        if self.path == CONTROL:
            self.answer_json(self.server.seen)
        else:
            self.pass_on()

    def pass_on(self) -> None:
        """Ask upstream, and send its answer or a spoiled one."""
        fault = self.server.take_fault(self.command, self.path.partition("?")[0])
        seen = {"method": self.command, "path": self.path, "range": self.headers.get("Range")}
        with self.server.lock:
            self.server.seen.append({**seen, "fault": fault.kind if fault else None})
        if fault and fault.kind == "status":
            self.send_whole(fault.status, {}, b"spoiled on purpose\n")
        elif fault and fault.kind == "html":
            page = b"<html><body>Please sign in.</body></html>"
            self.send_whole(200, {"Content-Type": "text/html"}, page)
        else:
            status, headers, body = self.ask_upstream()
            if fault and fault.kind == "short-range":
                self.send_short(status, headers, body)
            elif fault:
                self.send_broken(status, headers, body, fault.kind)
            else:
                self.send_whole(status, headers, body)

    def ask_upstream(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the honest answer."""
        upstream = http.client.HTTPConnection(LOOPBACK, self.server.upstream_port, timeout=30)
        wanted = {"Range": self.headers["Range"]} if "Range" in self.headers else {}
        upstream.request(self.command, self.path, headers=wanted)
        answer = upstream.getresponse()
        headers = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
        body = answer.read()
        upstream.close()
        return answer.status, headers, body

    def send_whole(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send an answer that HTTP finds nothing wrong with."""
        headers.setdefault("Content-Length", str(len(body)))
        self.send_head(status, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_short(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send half of what was asked for, honestly labelled."""
        half = body[: len(body) // 2]
        if "Content-Range" in headers:
            span, _, total = headers["Content-Range"].partition("/")
            start = int(span.split()[1].split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{start + len(half) - 1}/{total}"
        headers["Content-Length"] = str(len(half))
        self.send_whole(status, headers, half)

    def send_broken(self, status: int, headers: dict[str, str], body: bytes, kind: str) -> None:
        """Promise the whole body, send half, then close, reset or fall silent."""
        self.send_head(status, headers)
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.close_connection = True
        if kind == "stall":
            time.sleep(STALL_S)
        if kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # The handler would send an orderly end; closing all that holds the socket resets it.
            self.rfile.close()
            self.connection.close()

    def send_head(self, status: int, headers: dict[str, str]) -> None:
        """Send the status line and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer_json(self, value: object) -> None:
        """Answer a request to the control address."""
        self.send_whole(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing for each request: ``seen`` has them."""


if __name__ == "__main__":
    FaultProxy(int(sys.argv[1]), int(sys.argv[2])).serve_forever()
