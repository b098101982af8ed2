"""Start the services by hand: ``python -m tests.services FOLDER``, Ctrl-C to stop.

Serves a folder over HTTP, an S3 endpoint and an empty STAC API, all on loopback, and prints where.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from tests.services.http_server import serve_folder
from tests.services.s3 import serve_s3
from tests.services.stac_api import serve_stac


def main() -> None:
    """Run until interrupted."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="bigmap-services-") as name:
        work = Path(name)
        with serve_folder(folder, work) as http, serve_s3(work) as s3, serve_stac(work) as stac:
            print(f"HTTP      {http.url}  ({folder})")
            print(f"  faulty  {http.faulty_url}")
            print("S3        " + " ".join(f"{key}={value}" for key, value in s3.env.items()))
            print(f"STAC API  {stac.url}", flush=True)
            try:
                signal.pause()
            except KeyboardInterrupt:
                print("stopping")


if __name__ == "__main__":
    main()
