"""Worker jobs of SLURM, kept in number while jobs come and go."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import Client
from distributed.core import Status
from distributed.security import Security
from distributed.utils import get_ip_interface

from bigmap.clusters.settings import DASHBOARD, LOOPBACK, SCHEDULER, worker_environment
from bigmap.config.cluster import SlurmCluster
from bigmap.errors import ClusterError

LOG = logging.getLogger(__name__)

KEEP_S = 5.0
"""How often lost jobs are looked for and replaced."""
COMMAND_LIMIT_S = 60
LOST_STARTS = 3
"""So many jobs may end before any worker has come; then something is wrong with all of them."""
JOB_NAME = "bigmap-worker"
NANNY_GB = 0.5
"""Beside the workers' own memory, for the processes that watch them."""


@contextmanager
def start_slurm(settings: SlurmCluster, *, note: Callable[[str], None]) -> Iterator[Client]:
    """Submit worker jobs, wait for the first worker, and cancel all jobs at the end.

    Scheduler and workers speak TLS with certificates made for this run; they lie in a private
    folder that driver and jobs share, and go with it.

    Parameters
    ----------
    settings
        The cluster section.
    note
        Tells the user of waiting, of lost jobs and of refused ones.

    Raises
    ------
    ClusterError
        If jobs cannot be submitted, or end before a worker comes.
    """
    check_commands()
    check_interface(settings.interface)
    shared = Path(settings.shared_folder or ".").expanduser().resolve()
    try:
        private = tempfile.TemporaryDirectory(dir=shared, prefix=".bigmap-tls-")
        Path(settings.log_folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"cluster.shared_folder, log_folder: {error.filename} cannot be written "
            f"({error.strerror})"
        ) from None
    with private as folder, dask.config.set(SCHEDULER), _open_cluster(settings, folder) as cluster:
        keeper = JobKeeper(cluster, settings, note)
        keeper.start()
        try:
            with Client(cluster) as client:
                keeper.wait_for_worker()
                yield client
        finally:
            keeper.stop()


def check_commands() -> None:
    """Refuse a machine without SLURM's commands, or an environment without dask-jobqueue."""
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise ClusterError(
            f"cluster.kind: slurm needs {', '.join(missing)}, which this machine does not have; "
            "run on a login node or in a job"
        )
    try:
        import dask_jobqueue  # noqa: F401, PLC0415 - only the slurm extra has it
    except ImportError:
        raise ClusterError(
            "cluster.kind: slurm needs dask-jobqueue; install bigmap[slurm]"
        ) from None


def check_interface(interface: str) -> None:
    """Refuse an interface that this machine does not have."""
    try:
        get_ip_interface(interface)
    except ValueError as error:
        raise ClusterError(f"cluster.interface: {error}") from None


def cluster_options(settings: SlurmCluster, *, private_folder: str) -> dict[str, Any]:
    """Return the arguments of dask-jobqueue's cluster."""
    workers = settings.processes
    job_gb = workers * (settings.memory_gb + NANNY_GB)
    has_gpu = settings.gpus_per_job > 0
    return {
        "n_workers": 0,
        "config_name": "slurm",
        "queue": settings.partition,
        "account": settings.account,
        "walltime": _format_walltime(settings.walltime_minutes),
        "cores": settings.blocks_per_worker * workers,
        "processes": workers,
        "memory": f"{int(workers * settings.memory_gb * 1e9)}B",
        "job_cpu": settings.cpus_per_worker * workers,
        "job_mem": f"{int(job_gb * 1e9 / 2**20)}M",
        "job_name": JOB_NAME,
        "job_extra_directives": list_directives(settings),
        "job_script_prologue": list_prologue(settings),
        "interface": settings.interface,
        "protocol": "tls://",
        "security": make_certificates(Path(private_folder)),
        "scheduler_options": {"dashboard_address": DASHBOARD},
        "worker_command": "dask_cuda.cli" if has_gpu else "distributed.cli.dask_worker",
        "worker_extra_args": ["--dashboard-address", f"{LOOPBACK}:0", "--no-dashboard"],
        "local_directory": settings.scratch,
        "log_directory": settings.log_folder,
        "python": settings.python,
        # A worker whose driver has gone leaves; its job must not idle until its walltime.
        "death_timeout": 60,
        "silence_logs": "critical",
    }


def make_certificates(folder: Path) -> Security:
    """Write a certificate and its key, made for one run, into a folder that only we can read."""
    made = Security.temporary()
    paths = {}
    # All roles share one certificate, which vouches for itself.
    for name, content in (("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        paths[name] = str(folder / f"{name}.pem")
        handle = os.open(paths[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(content)
    roles = ("client", "scheduler", "worker")
    files = {f"tls_{role}_{name}": paths[name] for role in roles for name in ("cert", "key")}
    return Security(require_encryption=True, tls_ca_file=paths["cert"], **files)


def list_directives(settings: SlurmCluster) -> list[str]:
    """Return the options of sbatch that dask-jobqueue has no argument for."""
    directives = ["--no-requeue"]  # A worker's job is replaced by a new one.
    if settings.gpus_per_job:
        kind = f"{settings.gpu_type}:" if settings.gpu_type else ""
        directives.append(f"--gres=gpu:{kind}{settings.gpus_per_job}")
    return [*directives, *settings.directives]


def list_prologue(settings: SlurmCluster) -> list[str]:
    """Return the shell lines of a job before its worker starts."""
    lives = {
        "distributed.worker.lifetime.duration": f"{settings.lifetime_s:.0f}s",
        "distributed.worker.lifetime.stagger": f"{settings.stagger_s:.0f}s",
    }
    variables = worker_environment(lives)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return [*exports, *settings.prologue]


def _format_walltime(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


@contextmanager
def _open_cluster(settings: SlurmCluster, private_folder: str) -> Iterator[Any]:
    from dask_jobqueue.slurm import SLURMCluster  # noqa: PLC0415 - only the slurm extra has it

    try:
        cluster = SLURMCluster(**cluster_options(settings, private_folder=private_folder))
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"cluster: the scheduler cannot be started ({error})") from error
    with cluster:
        yield cluster


class JobKeeper:
    """Keeps the number of worker jobs.

    dask-jobqueue replaces no job: not one that was cancelled, reached its walltime, or died before
    its worker came. A thread asks SLURM which jobs there are, forgets the others and has them
    submitted anew, under new names: Dask cancels what had the name of a worker that it lost.
    """

    def __init__(self, cluster: Any, settings: SlurmCluster, note: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.settings = settings
        self.note = note
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._keep, daemon=True, name="bigmap-jobs")
        self.came: set[str] = set()
        """Names of jobs whose worker has come."""
        self.lost_starts = 0
        """Jobs in a row that ended before their worker came."""
        self.last_lost = ""
        self.refusal: str | None = None

    def start(self) -> None:
        """Submit the first jobs, and then keep their number.

        Raises
        ------
        ClusterError
            If SLURM refuses them.
        """
        low, high = self.settings.min_jobs, self.settings.max_jobs
        self.cluster.sync(_add_jobs, self.cluster, low)
        refusal = self.cluster.sync(_submit, self.cluster)
        if refusal is not None:
            raise ClusterError(f"cluster: SLURM refused a worker job: {refusal}")
        if high > low:
            self.cluster.adapt(
                minimum_jobs=low, maximum_jobs=high, interval="5s", wait_count=6,
                target_duration="1s",
            )  # fmt: skip
        self.thread.start()

    def stop(self) -> None:
        """Replace no more jobs."""
        self.stopping.set()
        if self.thread.is_alive():
            self.thread.join(COMMAND_LIMIT_S)

    def wait_for_worker(self) -> None:
        """Wait until a worker has come, however long the queue is.

        Raises
        ------
        ClusterError
            If jobs end before.
        """
        jobs = [job.job_id for job in self.cluster.workers.values()]
        self.note(f"cluster: waiting for the first worker of SLURM job {', '.join(map(str, jobs))}")
        while not self.cluster.scheduler_info["workers"]:
            if self.lost_starts >= LOST_STARTS:
                raise ClusterError(
                    f"cluster: {self.lost_starts} jobs ended before their worker came; "
                    f"{self._read_log(self.last_lost)}"
                )
            time.sleep(0.2)

    def _keep(self) -> None:
        while not self.stopping.wait(KEEP_S * 2 ** min(self.lost_starts, 6)):
            self._replace_lost()

    def _replace_lost(self) -> None:
        before = {name: job.job_id for name, job in list(self.cluster.workers.items())}
        queued = list_jobs()
        if queued is None:  # SLURM is busy; nothing is known.
            return
        names = {str(worker["name"]) for worker in self._workers()}
        self.came |= {job for job in before if any(_belongs(name, job) for name in names)}
        lost = [name for name, job_id in before.items() if job_id not in queued]
        early = [name for name in lost if name not in self.came]
        self.lost_starts = self.lost_starts + len(early) if not names else 0
        if early:
            self.last_lost = str(before[early[-1]])
        if not self.stopping.is_set():
            self.cluster.sync(_replace, self.cluster, lost)
            self._tell(self.cluster.sync(_submit, self.cluster))

    def _workers(self) -> list[dict[str, Any]]:
        return list(self.cluster.scheduler_info["workers"].values())

    def _tell(self, refusal: str | None) -> None:
        if refusal is not None and refusal != self.refusal:
            self.note(f"cluster: SLURM refuses worker jobs at present: {refusal}")
        self.refusal = refusal

    def _read_log(self, job_id: str) -> str:
        file = Path(self.settings.log_folder) / f"{JOB_NAME}-{job_id}.err"
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return f"{file} cannot be read"
        return f"{file} ends with: {lines[-1] if lines else 'nothing'}"


def list_jobs() -> set[str] | None:
    """Return the numbers of this user's jobs that wait or run, None where SLURM does not answer."""
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%A"]
    try:
        answer = subprocess.run(  # noqa: S603 - no shell, no input of others
            command, check=True, capture_output=True, text=True, timeout=COMMAND_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        LOG.debug("squeue failed", exc_info=error)
        return None
    return set(answer.stdout.split())


def _belongs(worker: str, job: str) -> bool:
    """Tell whether a worker is of a job: it has the job's name, or that and its own number."""
    return worker == job or worker.rpartition("-")[0] == job


async def _add_jobs(cluster: Any, count: int) -> None:
    for _ in range(count):
        cluster.worker_spec.update(cluster.new_worker_spec())


async def _replace(cluster: Any, lost: list[str]) -> None:
    for name in lost:
        _forget(cluster, name, Status.closed)
        if name in cluster.worker_spec:
            cluster.worker_spec.update(cluster.new_worker_spec())
            del cluster.worker_spec[name]


def _forget(cluster: Any, name: str, status: Status) -> None:
    """Drop a job; a cluster that closes insists on the status of all it ever made."""
    job = cluster.workers.pop(name, None)
    if job is not None:
        job.status = status


async def _submit(cluster: Any) -> str | None:
    """Have all missing jobs submitted; returns why SLURM refuses, where it does."""
    try:
        await cluster
    except (OSError, RuntimeError, ValueError) as error:
        for name in [name for name, job in cluster.workers.items() if job.job_id is None]:
            _forget(cluster, name, Status.failed)
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("sbatch: error:")]
        return (said or lines or [type(error).__name__])[0].removeprefix("sbatch: error: ")
    return None
