"""Real services for tests: each starts once a session, on a free port of loopback.

Where a program is missing the tests skip and say which; with ``BIGMAP_REQUIRE_SERVICES=1``, as in
CI, they fail instead.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services.http_server import HttpServer, serve_folder
from tests.services.processes import MissingProgramError
from tests.services.s3 import S3Server, serve_s3
from tests.services.slurm import Slurm, serve_slurm
from tests.services.stac_api import StacApi, serve_stac


@contextmanager
def _required() -> Iterator[None]:
    try:
        yield
    except MissingProgramError as error:
        if os.environ.get("BIGMAP_REQUIRE_SERVICES"):
            pytest.fail(str(error))
        pytest.skip(f"{error}; see CONTRIBUTING.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that none slips into the fast tier.

    Tests of one file go to one process, as they share what was made for them, and all of SLURM's:
    they wait most of the time, beside which others run.
    """
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.services)
            group = "slurm" if "slurm" in item.fixturenames else item.path.stem
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that ``http_server`` serves; put files or links into it."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def _http_session(
    served_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpServer]:
    with _required(), serve_folder(served_folder, tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture
def http_server(_http_session: HttpServer) -> Iterator[HttpServer]:
    """``served_folder`` over HTTP, with no faults left from other tests."""
    _http_session.clear()
    yield _http_session
    _http_session.clear()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 endpoint."""
    with _required(), serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a fresh bucket, ``s3://name``; the environment points libraries at its endpoint."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server.make_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def stac_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StacApi]:
    """An empty STAC API; tests load collections of their own into it."""
    with _required(), serve_stac(tmp_path_factory.mktemp("stac")) as api:
        yield api


@pytest.fixture(scope="session")
def _slurm_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with _required(), serve_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture
def slurm(_slurm_session: Slurm) -> Iterator[Slurm]:
    """A SLURM of two nodes, with no jobs left from other tests."""
    _slurm_session.cancel_all()
    yield _slurm_session
    _slurm_session.cancel_all()
