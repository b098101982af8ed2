"""Normalisation over processes, with threads as processes."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from bigmap.learning.training.norms import GlobalBatchNorm2d, synchronise_norms


class Meeting:
    """Adds up tensors of threads, as a process group does of processes."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world)
        self.lock = threading.Lock()
        self.parts: list[Tensor] = []

    def sum(self, values: Tensor) -> Tensor:
        with self.lock:
            self.parts.append(values)
        self.barrier.wait(10)
        total = torch.stack(self.parts).sum(0)
        if self.barrier.wait(10) == 0:
            self.parts = []
        self.barrier.wait(10)
        return values.copy_(total)


def train_alone(net: nn.Module, images: Tensor, weights: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    (net(leaf) * weights).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("counts", [(3, 3), (1, 5), (2, 1, 3)])
def test_statistics_and_gradients_are_those_of_one_process(counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images, weights = torch.randn(sum(counts), 4, 5, 6) * 3 + 7, torch.randn(sum(counts), 4, 5, 6)
    alone = nn.BatchNorm2d(4)
    nn.init.normal_(alone.weight)
    state = {name: values.clone() for name, values in alone.state_dict().items()}
    expected = train_alone(alone, images, weights)
    meeting = Meeting(len(counts))
    nets = []
    for _ in counts:
        net = nn.BatchNorm2d(4)
        net.load_state_dict(state)
        nets.append(GlobalBatchNorm2d(net, meeting.sum))
    found: list[Tensor | None] = [None] * len(counts)
    pieces = zip(images.split(counts), weights.split(counts), strict=True)

    def work(rank: int, piece: tuple[Tensor, Tensor]) -> None:
        found[rank] = train_alone(nets[rank], *piece)

    threads = [
        threading.Thread(target=work, args=(rank, piece)) for rank, piece in enumerate(pieces)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-5)
    for net in nets:
        torch.testing.assert_close(net.running_mean, alone.running_mean)
        torch.testing.assert_close(net.running_var, alone.running_var)
        assert int(net.num_batches_tracked) == 1
    for name in ("weight", "bias"):
        total = sum(getattr(net, name).grad for net in nets)
        torch.testing.assert_close(total, getattr(alone, name).grad, rtol=1e-4, atol=1e-4)


def test_norms_keep_their_names_and_are_plain_in_evaluation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3)))
    images = torch.randn(2, 2, 8, 8)
    model(images)
    before, names = model.eval()(images), list(model.state_dict())
    synchronise_norms(model, lambda values: values)
    assert isinstance(model[1], GlobalBatchNorm2d)
    assert isinstance(model[2][0], GlobalBatchNorm2d)
    assert list(model.state_dict()) == names
    assert torch.equal(model.eval()(images), before)
