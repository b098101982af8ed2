"""A Dask cluster that already runs."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client
from distributed.security import Security
from distributed.utils import silence_logging_cmgr

from bigmap.config.cluster import ExistingCluster
from bigmap.errors import ClusterError
from bigmap.files import parse_json

CONNECT_LIMIT_S = 20


@contextmanager
def connect(settings: ExistingCluster) -> Iterator[Client]:
    """Connect to the scheduler; at the end it goes on running.

    Raises
    ------
    ClusterError
        If no scheduler answers, or it refuses this client's certificate.
    """
    address = settings.address or _read_address(settings)
    field = "cluster.address" if settings.address else "cluster.scheduler_file"
    try:
        client = Client(address, security=_read_security(settings), timeout=CONNECT_LIMIT_S)
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"{field}: no scheduler at {address} that accepts this client within "
            f"{CONNECT_LIMIT_S} s ({_innermost(error)}); check that it runs and that the TLS files "
            "belong to it"
        ) from None
    # Dask shows a traceback for a scheduler that has gone; the run says so in one sentence.
    with silence_logging_cmgr(logging.CRITICAL, root="distributed.client"), client:
        yield client


def _read_address(settings: ExistingCluster) -> str:
    file = Path(settings.scheduler_file or "")
    try:
        address = str(parse_json(file.read_bytes())["address"])
        settings.check_address(address)
    except (OSError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(f"cluster.scheduler_file: {file} cannot be read ({reason})") from None
    except ValueError as error:
        raise ClusterError(f"cluster.scheduler_file: {file}: {error}") from None
    return address


def _read_security(settings: ExistingCluster) -> Security | None:
    if settings.tls_ca_file is None:
        return None
    security = Security(
        require_encryption=True,
        tls_ca_file=settings.tls_ca_file,
        tls_client_cert=settings.tls_cert_file,
        tls_client_key=settings.tls_key_file,
    )
    try:
        security.get_connection_args("client")
    except (OSError, ssl.SSLError) as error:
        raise ClusterError(
            "cluster.tls_ca_file, tls_cert_file, tls_key_file: are no certificates and key in PEM "
            f"that can be read ({error.strerror or error})"
        ) from None
    return security


def _innermost(error: BaseException) -> str:
    """Return what broke the connection, which Dask wraps several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
