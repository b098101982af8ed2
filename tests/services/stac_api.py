"""stac-fastapi on PostgreSQL with pgstac, on loopback."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.processes import (
    LOOPBACK,
    accepts_connections,
    find_program,
    free_port,
    running,
)

SERVICES_BIN = Path(__file__).resolve().parents[2] / ".venv-services" / "bin"
POSTGRES_BINS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
DATABASE = "pgstac"
COUNT_MATCHES = "UPDATE pgstac.pgstac_settings SET value = 'on' WHERE name = 'context'"
"""Without this setting the API does not say how many items a search matched."""


@dataclass(frozen=True)
class StacApi:
    """A STAC API with item search, empty at first."""

    url: str
    work: Path
    env: Mapping[str, str]

    def load(self, collection: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        """Add a collection and items of it, replacing those that are there already."""
        _load("collections", [collection], self.work, self.env)
        own = [{**item, "collection": collection["id"]} for item in items]
        _load("items", own, self.work, self.env)


def collection_of(name: str) -> dict[str, Any]:
    """Return the least that makes a STAC collection."""
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": name,
        "license": "proprietary",
        "links": [],
        "extent": {
            "spatial": {"bbox": [[-180, -90, 180, 90]]},
            "temporal": {"interval": [["2015-01-01T00:00:00Z", None]]},
        },
    }


@contextmanager
def serve_stac(work: Path) -> Iterator[StacApi]:
    """Run an empty STAC API with a database of its own until the block ends."""
    pypgstac = find_program("pypgstac", SERVICES_BIN)
    uvicorn = find_program("uvicorn", SERVICES_BIN)
    with _serve_postgres(work) as env:
        _run([pypgstac, "migrate"], env)
        _run_sql(COUNT_MATCHES, env)
        port = free_port()
        url = f"http://{LOOPBACK}:{port}"
        command = [uvicorn, "--factory", "stac_fastapi.pgstac.app:create_app"]
        with running(
            [*command, "--host", LOOPBACK, "--port", str(port), "--log-level", "warning"],
            log=work / "stac-api.log",
            env=env,
            ready=lambda: _answers(url),
        ):
            yield StacApi(url, work, env)


@contextmanager
def _serve_postgres(work: Path) -> Iterator[dict[str, str]]:
    """Run PostgreSQL as the user postgres, because it refuses root."""
    initdb = find_program("initdb", *POSTGRES_BINS)
    postgres = find_program("postgres", *POSTGRES_BINS)
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    # Not below pytest's folder, which only its owner may enter.
    data = Path(tempfile.mkdtemp(prefix="bigmap-postgres-"))
    try:
        if user:
            entry = pwd.getpwnam(user)
            os.chown(data, entry.pw_uid, entry.pw_gid)
        become = [find_program("runuser"), "-u", user, "--"] if user else []
        _run([*become, initdb, "-D", f"{data}/db", "-U", "postgres", "-A", "trust", "-N"], {})
        settings = {
            "listen_addresses": LOOPBACK,
            "port": port,
            "unix_socket_directories": data,
            "fsync": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with running(
            [postgres, "-D", f"{data}/db", *options],
            log=work / "postgres.log",
            user=user,
            stop_signal=signal.SIGINT,
            ready=lambda: accepts_connections(port),
        ):
            env = {
                "PGHOST": LOOPBACK,
                "PGPORT": str(port),
                "PGUSER": "postgres",
                "PGPASSWORD": "unused",
                "PGDATABASE": DATABASE,
            }
            _run_sql(f"CREATE DATABASE {DATABASE}", {**env, "PGDATABASE": "postgres"})
            yield env
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _load(
    kind: str, objects: Sequence[Mapping[str, Any]], work: Path, env: Mapping[str, str]
) -> None:
    file = work / f"{kind}.ndjson"
    file.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    pypgstac = find_program("pypgstac", SERVICES_BIN)
    _run([pypgstac, "load", kind, str(file), "--method", "upsert"], env)


def _run_sql(statement: str, env: Mapping[str, str]) -> None:
    psql = find_program("psql", *POSTGRES_BINS)
    _run([psql, "-q", "-v", "ON_ERROR_STOP=1", "-c", statement], env)


def _run(command: Sequence[str], env: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_mgmt/ping", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
