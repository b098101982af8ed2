"""Who a process is, how work is shared out, and how lost processes are told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigmap.clusters.ranks import Rank
from bigmap.errors import LostRankError, SamplesError, TrainingError
from bigmap.learning.training.batches import cut_batches, share_out
from bigmap.learning.training.launching import find_error
from bigmap.learning.training.ranks import Link, find_rank


@given(count=st.integers(0, 50), parts=st.integers(1, 6), world=st.integers(1, 6))
def test_parts_and_processes_share_a_batch_whole(count: int, parts: int, world: int) -> None:
    chips = list(range(count))
    pieces = [share_out(chips, rank=part, world=parts) for part in range(parts)]
    shares = [share_out(piece, rank=r, world=world) for piece in pieces for r in range(world)]
    assert [chip for share in shares for chip in share] == chips
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    if count >= parts * world:
        assert all(shares), "every process has a chip in every part"


def test_batches_are_cut_in_order() -> None:
    assert cut_batches(list(range(5)), 2) == [[0, 1], [2, 3], [4]]


def test_torchrun_and_srun_say_who_a_process_is() -> None:
    assert find_rank({}) is None
    torchrun = find_rank(
        {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
         "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    )  # fmt: skip
    assert torchrun == Rank(3, 4, 1, 2, "10.0.0.1", 29500, is_hosted=True)
    assert not torchrun.is_one_machine
    slurm = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2",
             "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "123456"}  # fmt: skip
    found = find_rank(slurm)
    assert found == Rank(1, 2, 1, 2, "127.0.0.1", 23456)
    assert found.is_one_machine
    # The script of a job is no task of a step, and a single task is alone.
    assert find_rank({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"}) is None
    assert find_rank(slurm | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_several_nodes_need_an_address_and_equal_shares() -> None:
    slurm = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4",
             "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "7"}  # fmt: skip
    with pytest.raises(TrainingError, match="need MASTER_ADDR"):
        find_rank(slurm)
    assert find_rank(slurm | {"MASTER_ADDR": "node1"}).address == "node1"
    with pytest.raises(TrainingError, match="do not spread evenly"):
        find_rank(slurm | {"SLURM_STEP_NUM_TASKS": "3", "MASTER_ADDR": "node1"})


def test_one_process_needs_nobody_to_add_up() -> None:
    link, values = Link(Rank()), torch.tensor([1.0, 2.0])
    assert link.sum(values) is values
    layer = torch.nn.Linear(1, 1)
    link.sum_gradients(layer.parameters())
    assert layer.weight.grad is None


def test_errors_keep_their_kind_between_processes() -> None:
    assert find_error("SamplesError") is SamplesError
    assert find_error("LostRankError") is LostRankError
    assert find_error("annotations") is TrainingError
    assert find_error("OSError") is TrainingError
