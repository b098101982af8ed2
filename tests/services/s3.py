"""moto's S3 endpoint on loopback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import s3fs

from tests.services.processes import LOOPBACK, accepts_connections, find_program, free_port, running

KEY = SECRET = "testing"
REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """An S3 endpoint without TLS whose credentials open nothing else."""

    endpoint: str

    @property
    def storage_options(self) -> dict[str, object]:
        """Options for fsspec's ``s3`` file system."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint}

    @property
    def env(self) -> dict[str, str]:
        """The same as environment variables, for boto, s3fs, obstore and GDAL."""
        host = self.endpoint.removeprefix("http://")
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_S3_ENDPOINT": host,
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }

    def make_bucket(self, name: str) -> str:
        """Create an empty bucket and return its URL."""
        s3fs.S3FileSystem(**self.storage_options, skip_instance_cache=True).mkdir(name)
        return f"s3://{name}"


@contextmanager
def serve_s3(work: Path) -> Iterator[S3Server]:
    """Run an S3 endpoint that keeps its objects in memory until the block ends."""
    port = free_port()
    command = [find_program("moto_server", Path(sys.executable).parent)]
    with running(
        [*command, "-H", LOOPBACK, "-p", str(port)],
        log=work / "moto.log",
        ready=lambda: accepts_connections(port),
    ):
        yield S3Server(f"http://{LOOPBACK}:{port}")
