"""nginx on loopback, and in front of it a proxy that spoils chosen answers."""

from __future__ import annotations

import json
import os
import pwd
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import executable
from typing import Any

from tests.services.fault_proxy import CONTROL, Fault
from tests.services.processes import LOOPBACK, accepts_connections, find_program, free_port, running

NGINX_CONF = """
daemon off;
pid {work}/nginx.pid;
error_log {work}/error.log;
{user}
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log {work}/access.log;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    types {{ image/tiff tif tiff; application/json json geojson; text/html html; }}
    default_type application/octet-stream;
    server {{
        listen {host}:{port};
        root {root};
    }}
}}
"""


@dataclass(frozen=True)
class HttpServer:
    """A folder over HTTP: ``url`` is honest, ``faulty_url`` spoils what it was told to."""

    url: str
    faulty_url: str

    def inject(self, path: str, kind: str, *, times: int = 3, status: int = 503) -> None:
        """Spoil the next ``times`` answers to paths that match a glob pattern.

        Below three, GDAL often hides the fault: its prefetch falls back.
        """
        self._control("POST", asdict(Fault(path, kind, times=times, status=status)))

    def clear(self) -> None:
        """Forget all faults and the requests seen so far."""
        self._control("DELETE")

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests that came to ``faulty_url``: method, path, range, fault."""
        seen: list[dict[str, Any]] = self._control("GET")
        return seen

    def _control(self, method: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self.faulty_url + CONTROL, json.dumps(body).encode(), method=method
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def serve_folder(root: Path, work: Path) -> Iterator[HttpServer]:
    """Serve a folder until the block ends.

    Parameters
    ----------
    root
        What to serve, with ranges.
    work
        Folder for configuration, logs and temporary files.
    """
    port, proxy_port = free_port(), free_port()
    # As root, nginx would drop to a user that may not read the tests' folders.
    user = f"user {pwd.getpwuid(os.geteuid()).pw_name};" if os.geteuid() == 0 else ""
    conf = work / "nginx.conf"
    conf.write_text(NGINX_CONF.format(work=work, user=user, host=LOOPBACK, port=port, root=root))
    nginx = [find_program("nginx"), "-p", str(work), "-e", str(work / "error.log"), "-c", str(conf)]
    proxy = [
        executable,
        str(Path(__file__).with_name("fault_proxy.py")),
        str(proxy_port),
        str(port),
    ]
    with (
        running(nginx, log=work / "nginx.log", ready=lambda: accepts_connections(port)),
        running(proxy, log=work / "proxy.log", ready=lambda: accepts_connections(proxy_port)),
    ):
        yield HttpServer(f"http://{LOOPBACK}:{port}", f"http://{LOOPBACK}:{proxy_port}")
