"""Attention between the dates of each pixel, as it is trained and as it predicts."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.networks import loops

STRIP_PX = 1024
"""About so many pixels of all dates at once: with 16 channels of 12 dates, 0.8 MB for each copy."""


@dataclass(frozen=True)
class PackedDates:
    """Which rows of packed features belong to which window.

    Networks see only valid dates, packed along one axis, (date, channel, y, x): a padded date
    costs nothing, and reaches neither attention nor means nor the statistics of a batch.
    """

    mask: Tensor
    """bool, (batch, time)."""
    counts: tuple[int, ...]
    """Valid dates of each window."""

    @classmethod
    def of(cls, mask: Tensor) -> PackedDates:
        """Count the valid dates of a mask (batch, time)."""
        return cls(mask, tuple(mask.sum(dim=1).tolist()))

    def pack(self, values: Tensor) -> Tensor:
        """Keep the valid dates, (batch, time, ...) to (date, ...)."""
        return values.flatten(0, 1) if sum(self.counts) == self.mask.numel() else values[self.mask]

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut packed values into groups (window, time, ...) of equally many dates.

        One group where all windows have equally many, else one for each window.
        """
        if len(set(self.counts)) == 1:
            return [values.unflatten(0, (len(self.counts), -1))]
        return [dates.unsqueeze(0) for dates in values.split(self.counts)]

    def average(self, values: Tensor) -> Tensor:
        """Average each window's dates, (date, ...) to (batch, ...), adding them one by one."""
        groups = self.split(values)
        return torch.cat([functools.reduce(torch.add, g.unbind(1)) / g.shape[1] for g in groups])

    def spread(self, values: Tensor) -> Tensor:
        """Give each date its window's values, (batch, ...) to (date, ...)."""
        total = sum(self.counts)
        return values.repeat_interleave(self.mask.sum(dim=1), dim=0, output_size=total)


class TemporalAttention(nn.Module):
    """Attention with one head over the dates of each pixel, without any code of their order.

    The parameters are those of ``torch.nn.MultiheadAttention`` with one head, and start alike
    (Vaswani et al. 2017, equation 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, features: Tensor, packed: PackedDates) -> Tensor:
        """Let the dates of each window look at each other, (date, channel, y, x)."""
        groups = [self._attend(group) for group in packed.split(features)]
        return groups[0] if len(groups) == 1 else torch.cat(groups)

    def _attend(self, group: Tensor) -> Tensor:
        channels, tokens = group.shape[2], _to_tokens(group)
        query, key, value = self.in_proj(tokens).split(channels, dim=-1)
        # Keys by queries: softmax over the last axis is several times slower on rows so short.
        empty = key.new_empty(1, 1, 1)
        similarity = torch.baddbmm(empty, key, query.mT, beta=0, alpha=channels**-0.5)
        mixed = self.out_proj(torch.bmm(torch.softmax(similarity, dim=1).mT, value))
        return _to_features(mixed, group.shape)


class FoldedAttention(nn.Module):
    """A leaky ReLU, the attention, its skip, a normalisation and, if asked, a leaky ReLU.

    With one head the products of matrices can be made beforehand. Up to what is the same for all
    dates j, which softmax ignores, date i looks at date j with

        (Wq x_i + bq) . (Wk x_j + bk) = (Wk' Wq x_i + Wk' bq) . x_j

    and, since its weights sum to one, brings Wo (sum of weights times (Wv x_j + bv)) + bo =
    Wo Wv (sum of weights times x_j) + (Wo bv + bo), which the normalisation scales and shifts. So
    dates themselves are keys and values, and two products of channels by channels remain of four.

    Parameters
    ----------
    attention, norm
        In evaluation mode.
    activate
        Whether a leaky ReLU comes last.
    """

    look: Tensor
    look_bias: Tensor
    bring: Tensor
    bring_bias: Tensor
    skip: Tensor

    def __init__(
        self, attention: TemporalAttention, norm: nn.BatchNorm2d, *, activate: bool
    ) -> None:
        super().__init__()
        self.activate = activate
        with torch.no_grad():
            for name, values in _fold(attention, norm).items():
                self.register_buffer(name, values.float().contiguous(), persistent=False)

    def forward(self, features: Tensor, packed: PackedDates) -> Tensor:
        """Transform packed dates (date, channel, y, x) with channels last; they are overwritten."""
        if features.is_cuda:
            return self._attend(features, packed)
        if loops.is_for_loops(features):
            for window in features.split(packed.counts):
                loops.attend(
                    window, look=self.look, look_bias=self.look_bias, bring=self.bring,
                    bring_bias=self.bring_bias, skip=self.skip, activate=self.activate,
                )  # fmt: skip
            return features
        # In strips of rows, which stay in the processor's cache.
        rows = max(1, STRIP_PX // features.shape[-1])
        for first in range(0, features.shape[-2], rows):
            strip = features[:, :, first : first + rows]
            strip.copy_(self._attend(strip, packed))
        return features

    def _attend(self, features: Tensor, packed: PackedDates) -> Tensor:
        groups = [self._attend_group(group) for group in packed.split(F.leaky_relu(features))]
        result = groups[0] if len(groups) == 1 else torch.cat(groups)
        return F.leaky_relu(result) if self.activate else result

    def _attend_group(self, group: Tensor) -> Tensor:
        tokens = _to_tokens(group)
        wanted = F.linear(tokens, self.look, self.look_bias)
        # Keys by queries: softmax over the last axis is several times slower on rows so short.
        weights = torch.softmax(torch.bmm(tokens, wanted.mT), dim=1)
        brought = F.linear(torch.bmm(weights.mT, tokens), self.bring, self.bring_bias)
        mixed = torch.addcmul(brought, tokens, self.skip.to(brought.dtype))
        return _to_features(mixed, group.shape)


def _to_tokens(group: Tensor) -> Tensor:
    """Lay each pixel's dates side by side, (window, date, channel, y, x) to (pixel, date, channel).

    One copy, after which all products run on views.
    """
    dates, channels = group.shape[1:3]
    return group.permute(0, 3, 4, 1, 2).reshape(-1, dates, channels).contiguous()


def _to_features(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Lay tokens of a group of that shape back into packed dates, (date, channel, y, x)."""
    windows, dates, channels, height, width = shape
    rows = tokens.view(windows, height, width, dates, channels).permute(0, 3, 1, 2, 4)
    return rows.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def _fold(attention: TemporalAttention, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Return the matrices of a folded attention, float64."""
    weights, biases = attention.in_proj.weight.double(), attention.in_proj.bias.double()
    (query, key, value), (query_bias, _, value_bias) = weights.chunk(3), biases.chunk(3)
    out, out_bias = attention.out_proj.weight.double(), attention.out_proj.bias.double()
    assert norm.running_var is not None
    assert norm.running_mean is not None
    skip = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - norm.running_mean.double() * skip
    root = len(key) ** -0.5
    return {
        "look": root * key.mT @ query,
        "look_bias": root * key.mT @ query_bias,
        "bring": skip[:, None] * out @ value,
        "bring_bias": skip * (out @ value_bias + out_bias) + shift,
        "skip": skip,
    }
