"""Batch normalisation over the batch of all processes, on CPUs too.

PyTorch's own SyncBatchNorm works on GPUs only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SumTensor = Callable[[Tensor], Tensor]
"""Adds up a tensor over processes."""


class _Normalise(torch.autograd.Function):
    """Normalisation by the statistics of all processes, whose gradients cross them too."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float, sum_ranks: SumTensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return normalised features and mean, variance and number of all processes' samples."""
        local = features.numel() // features.shape[1]
        variance, mean = torch.var_mean(features.float(), dim=(0, 2, 3), correction=0)
        # float64, so that the difference of two large sums below costs no digit.
        variance, mean = variance.double(), mean.double()
        sums = torch.cat([mean, variance + mean**2, torch.ones_like(mean[:1])]) * local
        sums = sum_ranks(sums)
        number = sums[-1]
        mean, square = (sums[:-1] / number).chunk(2)
        variance = (square - mean**2).clamp(min=0)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        scale = torch.rsqrt(variance + eps)
        normalised = F.batch_norm(features, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(features, weight, mean, scale, number)
        ctx.sum_ranks = sum_ranks
        ctx.mark_non_differentiable(mean, variance, number)
        return normalised, mean, variance, number

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Ioffe & Szegedy (2015), section 3, with the sums over the samples of all processes."""
        features, weight, mean, scale, number = ctx.saved_tensors
        gradient = gradients[0]
        shape = (1, -1, 1, 1)
        standard = (features.float() - mean.view(shape)) * scale.view(shape)
        wide = gradient.float()
        bias_sum = wide.sum(dim=(0, 2, 3))
        weight_sum = (wide * standard).sum(dim=(0, 2, 3))
        both = ctx.sum_ranks(torch.cat([bias_sum, weight_sum]).double()) / number
        mean_gradient, mean_product = (each.float().view(shape) for each in both.chunk(2))
        back = (wide - mean_gradient - standard * mean_product) * (weight * scale).view(shape)
        return back.to(gradient.dtype), weight_sum, bias_sum, None, None


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) by the samples of all processes.

    Each sample counts as much as another, however many a process has: with packed dates the
    processes have different numbers. Names of parameters and buffers are those of
    ``torch.nn.BatchNorm2d``.

    Parameters
    ----------
    norm
        What it takes the place of; parameters and buffers are shared.
    sum_ranks
        Adds up a tensor over processes.
    """

    def __init__(self, norm: nn.BatchNorm2d, sum_ranks: SumTensor) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        assert norm.affine, "the models' normalisations have weights"
        assert norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.sum_ranks = sum_ranks
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Normalise (batch, channel, y, x)."""
        if not self.training:
            return super().forward(input)
        normalised, mean, variance, number = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self.sum_ranks
        )
        self._track(mean, variance, number)
        return normalised  # type: ignore[no-any-return]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, number: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / float(self.num_batches_tracked)
        unbiased = variance * (number / (number - 1).clamp(min=1)).to(variance.dtype)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


def synchronise_norms(model: nn.Module, sum_ranks: SumTensor) -> None:
    """Let each batch normalisation of a model see the samples of all processes."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, GlobalBatchNorm2d(child, sum_ranks))
