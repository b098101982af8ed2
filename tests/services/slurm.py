"""A real SLURM on loopback: munge, slurmctld, two nodes with invented GPUs."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.services.processes import LOOPBACK, accepts_connections, find_program, free_port, running

NODES = ("node1", "node2")
SLURM_CONF = """
ClusterName=bigmap
SlurmctldHost={host}({loopback})
SlurmctldPort={port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={work}/munge.socket,cred_expire=15
CryptoType=crypto/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool-%n
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd-%n.pid
SlurmctldLogFile={work}/slurmctld.log
SlurmdLogFile={work}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
InactiveLimit=0
KillWait=10
MinJobAge=3600
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SchedulerType=sched/backfill
GresTypes=gpu
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr={loopback} Port={port} CPUs=4 RealMemory=8000 "
    "Gres=gpu:2 State=UNKNOWN"
)
# Two terminals stand for GPUs: SLURM wants device files, and sets CUDA_VISIBLE_DEVICES for them.
GRES_CONF = "Name=gpu File=/dev/tty[0-1] Flags=nvidia_gpu_env\n"


@dataclass(frozen=True)
class Slurm:
    """A running SLURM; its commands find it through ``env``."""

    env: dict[str, str]
    work: Path

    def call(self, *command: str) -> str:
        """Run one of SLURM's commands and return what it prints."""
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=180,
            env={**os.environ, **self.env},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def jobs(self, *states: str, name: str = "bigmap-worker") -> list[str]:
        """Return the numbers of jobs of a name, by default of those that wait or run."""
        wanted = [f"--states={','.join(states)}"] if states else []
        return self.call("squeue", "--noheader", "--format=%A", f"--name={name}", *wanted).split()

    def wait_for_no_jobs(self) -> None:
        """Wait until jobs that were cancelled have left the queue."""
        deadline = time.monotonic() + 180
        while self.jobs():
            if time.monotonic() > deadline:
                raise RuntimeError(self.call("squeue"))
            time.sleep(0.2)

    def cancel_all(self) -> None:
        """Cancel all jobs and wait until they are gone."""
        while jobs := self.call("squeue", "--noheader", "--format=%A").split():
            self.call("scancel", *jobs)
            time.sleep(0.2)

    def listening(self) -> list[int]:
        """Return the ports that its daemons were given."""
        return [
            int(word.partition("=")[2])
            for line in (self.work / "slurm.conf").read_text().splitlines()
            for word in line.split()
            if word.startswith(("SlurmctldPort=", "Port="))
        ]

    def explain(self) -> str:
        """Return the ends of the daemons' logs."""
        logs = sorted(self.work.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in logs)


@contextmanager
def serve_slurm(work: Path) -> Iterator[Slurm]:
    """Run munge, slurmctld and two nodes until the block ends; needs root.

    Parameters
    ----------
    work
        Folder for configuration, logs and state.
    """
    programs = {name: find_program(name) for name in ("munged", "slurmctld", "slurmd", "sbatch")}
    # munge trusts no socket below a folder that others may write to, so /tmp needs the sticky bit.
    for folder in ("state", *(f"spool-{name}" for name in NODES)):
        (work / folder).mkdir(parents=True)
    env = _configure(work)
    slurm = Slurm(env, work)
    with ExitStack() as stack:
        munge, munge_socket = _munge(programs["munged"], work), work / "munge.socket"
        stack.enter_context(running(munge, log=work / "munged.out", ready=munge_socket.exists))
        ports = slurm.listening()
        commands: list[Sequence[str]] = [[programs["slurmctld"], "-D", "-i", "-c"]]
        commands += [[programs["slurmd"], "-D", "-N", name] for name in NODES]
        for command, port in zip(commands, ports, strict=True):
            name = "-".join([Path(command[0]).name, *command[3:]])
            stack.enter_context(
                running(
                    command, log=work / f"{name}.out", env=env,
                    ready=lambda port=port: accepts_connections(port),
                )
            )  # fmt: skip
        _wait_for_nodes(slurm)
        yield slurm
        slurm.cancel_all()


def _configure(work: Path) -> dict[str, str]:
    host = socket.gethostname().partition(".")[0]
    nodes = [
        NODE.format(name=name, host=host, loopback=LOOPBACK, port=free_port()) for name in NODES
    ]
    conf = work / "slurm.conf"
    conf.write_text(
        SLURM_CONF.format(
            host=host, loopback=LOOPBACK, port=free_port(), user="root", work=work,
            nodes="\n".join(nodes), names=",".join(NODES),
        )
    )  # fmt: skip
    (work / "gres.conf").write_text(GRES_CONF)
    return {"SLURM_CONF": str(conf)}


def _munge(program: str, work: Path) -> list[str]:
    key = work / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    return [
        program, "--foreground", "--force", f"--socket={work}/munge.socket", f"--key-file={key}",
        f"--pid-file={work}/munged.pid", f"--log-file={work}/munged.log",
        f"--seed-file={work}/munged.seed", "--num-threads=2",
    ]  # fmt: skip


def _wait_for_nodes(slurm: Slurm) -> None:
    deadline = time.monotonic() + 180
    while True:
        states = slurm.call("sinfo", "--noheader", "--Node", "--format=%T").split()
        if states == ["idle"] * len(NODES):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"nodes are {states}\n{slurm.explain()}")
        time.sleep(0.2)
