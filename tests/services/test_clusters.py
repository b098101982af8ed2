"""Clusters as others see them: open ports, certificates, refused jobs, what a check reports."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
import yaml
from distributed import Client
from distributed.security import Security

from bigmap.clusters import open_cluster
from bigmap.clusters.checks import check_cluster
from bigmap.clusters.slurm import cluster_options
from bigmap.config.loading import load_cluster
from bigmap.errors import ClusterError
from tests.services.slurm import Slurm

ROOT = Path(__file__).resolve().parents[2]
GPU = str(ROOT / "cluster" / "slurm-gpu.yaml")
CPU = str(ROOT / "cluster" / "slurm-cpu.yaml")
SMALL = ["cluster.interface=lo", "cluster.cpus_per_worker=1", "cluster.memory_gb=2"]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def on_slurm(slurm: Slurm, tmp_path, monkeypatch) -> Slurm:
    """A SLURM that this process submits to, from a folder of its own."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return slurm


def write_job(tmp_path: Path, name: str, *settings: str) -> Path:
    """Write the job script of a cluster file as dask-jobqueue submits it."""
    from dask_jobqueue.slurm import SLURMCluster

    cluster = load_cluster(name, [*SMALL, *settings])
    folder = tmp_path / "private"
    folder.mkdir(exist_ok=True)
    with SLURMCluster(**cluster_options(cluster, private_folder=str(folder))) as started:
        file = tmp_path / "job.sh"
        file.write_text(started.job_script())
    return file


@pytest.mark.parametrize(("gpus", "is_accepted"), [(1, True), (2, True), (3, False)])
def test_slurm_takes_the_job_script_of_gpu_workers(on_slurm, tmp_path, gpus, is_accepted):
    script = write_job(tmp_path, GPU, f"cluster.gpus_per_job={gpus}")
    text = script.read_text()
    assert f"#SBATCH --gres=gpu:{gpus}\n" in text
    assert " -m dask_cuda.cli tls://127.0.0.1:" in text
    assert "PRIVATE KEY" not in text
    done = subprocess.run(["sbatch", "--test-only", script], check=False, capture_output=True)
    assert (done.returncode == 0) == is_accepted, done.stderr
    if not is_accepted:
        assert b"Requested node configuration is not available" in done.stderr


def test_a_job_that_slurm_refuses_is_one_sentence(on_slurm, notes):
    settings = load_cluster(CPU, [*SMALL, "cluster.partition=nowhere"])
    with (
        pytest.raises(ClusterError, match=r"SLURM refused a worker job: .*[Ii]nvalid partition"),
        open_cluster(settings, note=notes.append),
    ):
        pass
    assert not list(Path().glob(".bigmap-tls-*"))


def test_jobs_that_end_before_their_worker_comes_are_one_sentence(on_slurm, notes, monkeypatch):
    monkeypatch.setattr("bigmap.clusters.slurm.KEEP_S", 0.5)
    settings = load_cluster(CPU, [*SMALL, "cluster.prologue=['echo no such module >&2; exit 1']"])
    with (
        pytest.raises(ClusterError, match=r"before their worker came.*ends with: no such module"),
        open_cluster(settings, note=notes.append),
    ):
        pass
    on_slurm.wait_for_no_jobs()


def test_a_check_of_slurm_reports_each_worker_and_stops_it(on_slurm, tmp_path, notes):
    settings = load_cluster(CPU, [*SMALL, "cluster.min_jobs=1", "cluster.workers_per_job=2"])
    report = check_cluster(settings, str(tmp_path / "maps"), note=notes.append)
    assert report.problems == ()
    assert report.wanted == len(report.workers) == 2
    assert {round(worker.memory_gb, 1) for worker in report.workers} == {2.0}
    assert all(worker.device.kind == "cpu" for worker in report.workers)
    assert list((tmp_path / "maps").iterdir()) == []
    on_slurm.wait_for_no_jobs()
    assert any("waiting for the first worker of SLURM job" in note for note in notes)


def listening_ports(process: psutil.Process) -> dict[int, str]:
    """Return the ports on which a process and its children listen, with the address of each."""
    found = {}
    for each in [process, *process.children(recursive=True)]:
        for place in each.net_connections(kind="inet"):
            if place.status == psutil.CONN_LISTEN:
                found[place.laddr.port] = place.laddr.ip
    return found


ANOTHER_USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3"]
INTRUDE = """
import socket, ssl, sys
port, key = int(sys.argv[1]), sys.argv[2]
try:
    open(key)
    print("read the key")
except PermissionError:
    print("no key")
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
try:
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 60)) as connection:
        print("let in" if connection.recv(1) else "closed")
except (ssl.SSLError, ConnectionResetError) as error:
    print("refused", error)
"""


def test_a_tls_scheduler_refuses_who_has_no_certificate(on_slurm, notes, monkeypatch):
    # A folder that all may read, as a site's scratch often is.
    shared = Path(tempfile.mkdtemp(prefix="bigmap-shared-"))
    shared.chmod(0o755)
    settings = load_cluster(CPU, [*SMALL, f"cluster.shared_folder={shared}"])
    with open_cluster(settings, note=notes.append) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        (folder,) = shared.glob(".bigmap-tls-*")
        port = address.rpartition(":")[2]
        said = subprocess.check_output(
            [*ANOTHER_USER, "-c", INTRUDE, port, str(folder / "key.pem")], text=True, cwd="/"
        )
        assert said.startswith("no key\nrefused"), said
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
        # Nobody else: neither without TLS nor with a certificate of one's own.
        for other, security, words in (
            (address.replace("tls", "tcp"), None, r"reset|closed|Timed out"),
            (address, Security.temporary(), r"certificate does not match"),
        ):
            with pytest.raises(OSError, match=words):
                Client(other, security=security, timeout=3)
        # Whoever has the files is let in, as an existing cluster.
        files = {
            "tls_ca_file": "cert.pem", "tls_cert_file": "cert.pem", "tls_key_file": "key.pem",
        }  # fmt: skip
        known = {key: str(folder.resolve() / name) for key, name in files.items()}
        file = Path("existing.yaml")
        file.write_text(yaml.safe_dump({"kind": "existing", "address": address} | known))
        with open_cluster(load_cluster(str(file))) as guest:
            assert len(guest.scheduler_info()["workers"]) == 1
            assert guest.submit(sum, [1, 2]).result() == 3
        assert client.submit(sum, [1, 3]).result() == 4, "a guest leaves the cluster as it is"
        # Scheduler, dashboard and worker listen where they were told to.
        assert set(listening_ports(psutil.Process()).values()) == {"127.0.0.1"}
        (pid,) = client.run(os.getppid).values()
        ports = listening_ports(psutil.Process(pid))
        assert len(ports) >= 2
        assert set(ports.values()) == {"127.0.0.1"}
        monkeypatch.setattr("bigmap.clusters.existing.CONNECT_LIMIT_S", 3)
        wrong = dict(known, tls_ca_file=str(Path("other.pem").resolve()))
        Path("other.pem").write_text(Security.temporary().tls_client_cert)
        file.write_text(yaml.safe_dump({"kind": "existing", "address": address} | wrong))
        with (
            pytest.raises(ClusterError, match=r"cluster\.address: no scheduler at tls://"),
            open_cluster(load_cluster(str(file))),
        ):
            pass
    assert list(shared.iterdir()) == [], "certificates go with the run"
    shared.rmdir()
