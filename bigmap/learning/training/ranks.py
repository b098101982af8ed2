"""The processes that train together: who they are, and the sums that cross them."""

from __future__ import annotations

import datetime as dt
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigmap.clusters.ranks import LOOPBACK, Rank
from bigmap.errors import LostRankError, TrainingError

TIMEOUT_VARIABLE = "BIGMAP_TRAIN_TIMEOUT_S"
STORE_VARIABLE = "BIGMAP_TRAIN_STORE_FD"
"""The socket on which the first process listens, where whoever started it has opened it."""
TIMEOUT_S = 300.0
"""For which a process waits for the others; whoever is silent for longer is lost."""
JOIN_S = 600.0
"""For which a process waits for the others to come."""
BUCKET_VALUES = 16_000_000
"""Gradients that are added up in one go."""


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """Tell which process this is, by what torchrun or srun say; None if neither started it.

    Raises
    ------
    TrainingError
        If srun started several tasks and no address can be found.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        world = int(environment["WORLD_SIZE"])
        return Rank(
            rank=int(environment["RANK"]),
            world=world,
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            local_world=int(environment.get("LOCAL_WORLD_SIZE", world)),
            address=environment.get("MASTER_ADDR", LOOPBACK),
            port=int(environment.get("MASTER_PORT", 0)),
            is_hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    # The script of a job has SLURM_PROCID too, but is no task of a step.
    world = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if world == 1 or "SLURM_PROCID" not in environment:
        return None
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
    per_node = world // nodes
    if per_node * nodes != world:
        raise TrainingError(
            f"srun: {world} tasks do not spread evenly over {nodes} nodes; give --ntasks-per-node"
        )
    return Rank(
        rank=int(environment["SLURM_PROCID"]),
        world=world,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_world=per_node,
        address=_find_master(environment, nodes),
        port=int(environment.get("MASTER_PORT", 0)) or _choose_port(environment["SLURM_JOB_ID"]),
    )


def _find_master(environment: Mapping[str, str], nodes: int) -> str:
    """Return where the first task of a step listens: on loopback, if all are of one machine."""
    if address := environment.get("MASTER_ADDR"):
        return address
    if nodes == 1:
        return LOOPBACK
    raise TrainingError(
        "srun: tasks on several nodes need MASTER_ADDR in the environment, the address of the "
        "first of them; cluster/train.sbatch finds it"
    )


def _choose_port(job_id: str) -> int:
    """Return a port that all tasks of a job find alike, beyond those that systems give out."""
    return 20_000 + int(job_id) % 10_000


class Link:
    """What crosses the processes; of a single one, nothing.

    Small numbers on the CPU go over gloo, gradients on GPUs over NCCL.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.rank.world

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place, and return it.

        Raises
        ------
        LostRankError
            If another process has gone or is silent.
        """
        if self.world > 1:
            with explain_loss():
                dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up gradients over all processes; one that none has stays None.

        They are added in flat pieces of a fixed layout. PyTorch's DistributedDataParallel
        regroups its pieces after the first step, so that three or more processes would add in
        another order after a run was resumed.
        """
        if self.world == 1:
            return
        for group in _cut(parameter for parameter in parameters if parameter.requires_grad):
            pieces = [_gradient(parameter).flatten() for parameter in group]
            total = torch.cat(pieces)
            with explain_loss():
                dist.all_reduce(total)
            parts = total.split([len(piece) for piece in pieces])
            for parameter, part in zip(group, parts, strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view(parameter.shape))

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the tensors of the first one."""
        if self.world > 1:
            with explain_loss(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _cut(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    group: list[nn.Parameter] = []
    for parameter in parameters:
        group.append(parameter)
        if sum(each.numel() for each in group) >= BUCKET_VALUES:
            yield group
            group = []
    if group:
        yield group


@contextmanager
def explain_loss() -> Iterator[None]:
    """Turn what PyTorch raises when another process has gone into an error of ours."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise LostRankError(
            f"another process of this training was lost ({reason}); go on with the same command "
            "and --resume"
        ) from error


@contextmanager
def open_link(rank: Rank, device: torch.device) -> Iterator[Link]:
    """Meet the other processes, and part from them at the end.

    On one machine all of it listens on loopback; between machines the first process listens on
    its own address in the network that they share, which is taken to be private: PyTorch neither
    encrypts nor asks who calls.

    Raises
    ------
    TrainingError
        If the first process cannot listen or cannot be reached.
    LostRankError
        If not all come.
    """
    if rank.world == 1:
        yield Link(rank)
        return
    if rank.is_one_machine:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    timeout = dt.timedelta(seconds=float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_S)))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        with explain_loss():
            if rank.is_hosted:
                dist.init_process_group(backend, timeout=timeout)
            else:
                dist.init_process_group(
                    backend, store=_open_store(rank), rank=rank.rank, world_size=rank.world,
                    timeout=timeout,
                )  # fmt: skip
        yield Link(rank)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _open_store(rank: Rank) -> Any:
    listener = _listen(rank) if rank.is_first else None
    return dist.TCPStore(  # type: ignore[attr-defined]
        rank.address, rank.port, rank.world,
        is_master=listener is not None,
        timeout=dt.timedelta(seconds=JOIN_S),
        master_listen_fd=None if listener is None else listener.detach(),
    )  # fmt: skip


def _listen(rank: Rank) -> socket.socket:
    """Listen on one address, where PyTorch would on all of the machine."""
    if STORE_VARIABLE in os.environ:
        return socket.socket(fileno=int(os.environ[STORE_VARIABLE]))
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            rank.address, rank.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        raise TrainingError(
            f"{rank.address}:{rank.port}: the first process cannot listen there "
            f"({error.strerror}); choose another MASTER_PORT"
        ) from None
    listener.listen()
    return listener
