"""The cluster section of a recipe, or a cluster file: where a run's workers come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from bigmap.config.parts import Number, Part, Place, Whole

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:+@=/-]+$", max_length=200)]
"""A value that goes into a job script as it is."""
Line = Annotated[str, Field(pattern=r"^[^\r\n\x00]+$", max_length=1000)]
BlocksPerWorker = Annotated[
    Whole,
    Field(
        ge=1,
        le=16,
        description="Blocks that a worker has in hand, so that one reads while another predicts.",
    ),
]
MemoryOfWorker = Annotated[Number, Field(gt=0, description="Memory of one worker.")]


class LocalCluster(Part):
    """Worker processes on this machine."""

    kind: Literal["local"] = "local"
    workers: Whole | None = Field(None, ge=1, le=512, description="By default one per two cores.")
    blocks_per_worker: BlocksPerWorker = 2
    memory_gb: Number | None = Field(
        None, gt=0, description="Memory of one worker; by default an equal share of the machine."
    )


class LocalCudaCluster(Part):
    """One worker process for each GPU of this machine."""

    kind: Literal["local-cuda"]
    gpus: tuple[Annotated[Whole, Field(ge=0, le=63)], ...] | None = Field(
        None,
        min_length=1,
        description="Numbers of the GPUs to use; by default all, or those in CUDA_VISIBLE_DEVICES.",
    )
    blocks_per_worker: BlocksPerWorker = 3
    memory_gb: Number | None = Field(
        None, gt=0, description="Memory of one worker; by default an equal share of the machine."
    )

    @model_validator(mode="after")
    def _check(self) -> LocalCudaCluster:
        if self.gpus and len(set(self.gpus)) < len(self.gpus):
            raise ValueError(f"gpus {list(self.gpus)} names a GPU twice")
        return self


class SlurmCluster(Part):
    """Worker jobs of SLURM. The scheduler runs with the driver; all of it speaks TLS."""

    kind: Literal["slurm"]
    interface: Word = Field(
        description="Network interface on which driver and jobs meet, for example ib0: the "
        "scheduler listens there and nowhere else."
    )
    partition: Word | None = Field(None, description="Partition; by default the site's.")
    account: Word | None = Field(None, description="Account to charge.")
    walltime_minutes: Whole = Field(60, ge=1, le=43_200, description="Limit of a worker job.")
    leave_before_s: Number = Field(
        120.0,
        ge=0,
        description="A worker leaves at least this long before its job's limit, and its blocks "
        "move to others.",
    )
    min_jobs: Whole = Field(1, ge=1, le=10_000, description="Jobs to keep, work or not.")
    max_jobs: Whole = Field(
        4, ge=1, le=10_000, description="Jobs at most; between the two the work decides."
    )
    workers_per_job: Whole = Field(
        1, ge=1, le=256, description="Worker processes in a job; with GPUs one for each."
    )
    cpus_per_worker: Whole = Field(4, ge=1, le=1024, description="Cores of one worker.")
    memory_gb: MemoryOfWorker = 16.0
    gpus_per_job: Whole = Field(0, ge=0, le=64, description="GPUs of a job; 0 for a CPU cluster.")
    gpu_type: Word | None = Field(None, description="Type of GPU in --gres, for example a100.")
    blocks_per_worker: BlocksPerWorker = 2
    directives: tuple[Line, ...] = Field(
        (), description="Further options of sbatch, for example --constraint=rome."
    )
    prologue: tuple[Line, ...] = Field(
        (), description="Shell lines before the worker starts: modules, environments."
    )
    python: Line | None = Field(
        None,
        description="How a job starts Python, for example in a container; by default the driver's.",
    )
    scratch: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.,:+@=/${}-]+$",
        description="Folder on the node's own disk for a worker's temporary files; the job's shell "
        "expands variables such as $TMPDIR.",
    )
    log_folder: Place = Field("slurm-logs", description="Where jobs write what they print.")
    shared_folder: Place | None = Field(
        None,
        description="Folder that driver and jobs both see, for the run's certificates; by default "
        "the current one.",
    )

    @model_validator(mode="after")
    def _check(self) -> SlurmCluster:
        if self.max_jobs < self.min_jobs:
            raise ValueError(f"max_jobs {self.max_jobs} is below min_jobs {self.min_jobs}")
        if self.gpus_per_job and self.workers_per_job not in (1, self.gpus_per_job):
            raise ValueError(
                f"workers_per_job {self.workers_per_job} is not gpus_per_job {self.gpus_per_job}; "
                "leave it out: each GPU has one worker"
            )
        if self.gpu_type and not self.gpus_per_job:
            raise ValueError("gpu_type is given without gpus_per_job")
        if self.lifetime_s <= 0:
            raise ValueError(
                f"walltime_minutes {self.walltime_minutes} leaves workers no time: raise it, or "
                f"lower leave_before_s {self.leave_before_s:g}"
            )
        return self

    @property
    def processes(self) -> int:
        """Worker processes of a job."""
        return self.gpus_per_job or self.workers_per_job

    @property
    def stagger_s(self) -> float:
        """How far the lives of workers differ, so that they do not all leave at once."""
        return 0.05 * (60 * self.walltime_minutes - self.leave_before_s)

    @property
    def lifetime_s(self) -> float:
        """Middle of the lives of workers; the longest ends ``leave_before_s`` before the job."""
        return 60 * self.walltime_minutes - self.leave_before_s - self.stagger_s


class ExistingCluster(Part):
    """A Dask cluster that already runs; its scheduler and workers stay as they are."""

    kind: Literal["existing"]
    address: Place | None = Field(
        None, pattern=r"^(tls|tcp)://[^/]+:\d+$", description="Scheduler, tls://host:port."
    )
    scheduler_file: Place | None = Field(
        None, description="File that the scheduler wrote (--scheduler-file)."
    )
    tls_ca_file: Place | None = Field(None, description="Certificate of the authority, PEM.")
    tls_cert_file: Place | None = Field(None, description="Certificate of this client, PEM.")
    tls_key_file: Place | None = Field(None, description="Key of this client, PEM.")
    allow_unencrypted: bool = Field(
        False, description="Accept a scheduler beyond this machine without TLS."
    )
    gpu: bool = Field(False, description="Whether each worker has a GPU.")
    blocks_per_worker: BlocksPerWorker = 2
    cpus_per_worker: Whole = Field(2, ge=1, le=1024, description="Cores of one worker.")
    memory_gb: Number | None = Field(
        None, gt=0, description="Memory of one worker, which planning then checks."
    )

    @model_validator(mode="after")
    def _check(self) -> ExistingCluster:
        if (self.address is None) == (self.scheduler_file is None):
            raise ValueError("give either address or scheduler_file")
        files = (self.tls_ca_file, self.tls_cert_file, self.tls_key_file)
        if any(files) and not all(files):
            raise ValueError("give tls_ca_file, tls_cert_file and tls_key_file together")
        if self.address is not None:
            self.check_address(self.address)
        return self

    def check_address(self, address: str) -> None:
        """Refuse a scheduler whose traffic others could read or change."""
        parts = urlsplit(address)
        if parts.scheme == "tls":
            if not self.tls_ca_file:
                raise ValueError(
                    f"{address} speaks TLS; give tls_ca_file, tls_cert_file and tls_key_file"
                )
        elif parts.hostname not in LOOPBACK_HOSTS and not self.allow_unencrypted:
            raise ValueError(
                f"{address} is not encrypted; start the scheduler with TLS, or set "
                "allow_unencrypted"
            )


def _name_kind(raw: Any) -> Any:
    """Take a section without a kind for a local cluster."""
    return {"kind": "local"} | raw if isinstance(raw, dict) else raw


ClusterConfig = Annotated[
    LocalCluster | LocalCudaCluster | SlurmCluster | ExistingCluster,
    Discriminator("kind"),
    BeforeValidator(_name_kind),
]


class ClusterFile(Part):
    """What a cluster file says, as the section of a recipe."""

    cluster: ClusterConfig
