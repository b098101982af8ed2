"""Feature affinity: two branches should find the same pixels alike (Abadal et al. 2021, 3.3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bigmap.learning.losses.masking import widen

LEAST_NORM = 1e-4
"""Shorter feature vectors are divided by this instead of their norm (our choice): the gradient of
a normalised vector grows without bound as its norm goes to 0."""


class FeatureAffinity(nn.Module):
    """Mean absolute difference of the pixel similarities in two feature maps.

    Abadal et al. (2021), equations 4 and 5, after Wang et al. (2020, DSRL):

        S_ij = (F_i / |F_i|)^T (F_j / |F_j|),  L = 1 / N^2 sum_ij |S_ij(segmentation) - S_ij(image)|

    over the N pixels i, j of a map. A 1 x 1 convolution first gives the segmentation features as
    many channels as the image features. Both branches receive gradients; the paper stops none.

    Parameters
    ----------
    segmentation_channels, image_channels
        Channels of the two feature maps.
    subsample
        Side of the squares that are averaged first; 8 in the paper, which does not say how it
        subsamples (averaging is our choice). 1 compares every pair of pixels.
    block_px
        Pixels i whose similarities are held at once. They are computed again for the gradients, so
        memory grows as ``block_px`` * N, not N^2.
    """

    def __init__(
        self,
        segmentation_channels: int,
        image_channels: int,
        *,
        subsample: int = 8,
        block_px: int = 512,
    ) -> None:
        super().__init__()
        self.match = nn.Conv2d(segmentation_channels, image_channels, 1)
        self.subsample = subsample
        self.block_px = block_px

    def forward(self, segmentation: Tensor, image: Tensor, *, valid: Tensor) -> Tensor:
        """Compare two feature maps.

        Parameters
        ----------
        segmentation, image
            Floating, (batch, channel, y, x), each with its own number of channels; sides are at
            least ``subsample``, and what does not fill a square at the end is left out.
        valid
            bool, (batch, y, x), or finer by a whole factor. A square with an invalid pixel has no
            similarities.

        Returns
        -------
        torch.Tensor
            Mean over all pairs of valid pixels of one image.

        Raises
        ------
        ValueError
            If the maps differ in size, or ``valid`` is not a whole number of times larger.
        """
        if segmentation.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"feature maps of {tuple(segmentation.shape[-2:])} and {tuple(image.shape[-2:])} "
                "pixels cannot be compared"
            )
        kept = self._pool_mask(valid, image.shape[-2:])
        matched = self._flatten(self.match(segmentation), kept)
        reference = self._flatten(image, kept)
        starts = range(0, kept.shape[1], self.block_px)
        total = sum(
            (self._sum_block(matched, reference, start) for start in starts), matched.new_zeros(())
        )
        pairs = (kept.sum(dim=1) ** 2).sum()
        return total / pairs.clamp(min=1)

    def count_pairs(self, valid: Tensor) -> Tensor:
        """Count the pairs that a comparison is the mean of; features and mask have one size."""
        kept = self._pool_mask(valid, valid.shape[-2:])
        return (kept.sum(dim=1) ** 2).sum()

    def _pool_mask(self, valid: Tensor, shape: torch.Size) -> Tensor:
        """Tell which squares are valid throughout, bool (batch, square)."""
        factor = valid.shape[-2] // shape[0]
        if valid.shape[-2:] != (factor * shape[0], factor * shape[1]):
            raise ValueError(
                f"a mask of {tuple(valid.shape[-2:])} px does not fit maps of {tuple(shape)} px"
            )
        spoilt = F.max_pool2d((~valid)[:, None].float(), factor * self.subsample)
        return spoilt.flatten(1) == 0

    def _flatten(self, features: Tensor, kept: Tensor) -> Tensor:
        """Average squares and normalise them, (batch, channel, square); 0 where not kept."""
        squares = F.avg_pool2d(widen(features), self.subsample).flatten(2)
        squares = torch.where(kept[:, None], squares, 0)
        return F.normalize(squares, dim=1, eps=LEAST_NORM)

    def _sum_block(self, first: Tensor, second: Tensor, start: int) -> Tensor:
        """Add up the differences of one block of rows of both similarity matrices."""
        total: Tensor = checkpoint(
            _sum_differences, first, second, start, start + self.block_px, use_reentrant=False,
            preserve_rng_state=False,
        )  # fmt: skip
        return total


def _sum_differences(first: Tensor, second: Tensor, start: int, stop: int) -> Tensor:
    similarities = [each[..., start:stop].mT @ each for each in (first, second)]
    return (similarities[0] - similarities[1]).abs().sum()
