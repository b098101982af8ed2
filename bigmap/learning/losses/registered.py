"""How an image lies on its reference: shifts of a few pixels are not the model's fault."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmap.learning.losses.masking import erode_mask, widen


class Registration(nn.Module):
    """Resamples an image, matches its colours, and estimates its shift against a reference.

    Razzak et al. (2021), figure 7 and section 5.1, with the registration of Deudon et al. (2020):
    an estimator reads two numbers, the shift down and right, from the pair of images. Gradients of
    a loss of the shifted image reach the image, the colours and the estimator.

    Parameters
    ----------
    estimator
        Module from (batch, 2 * band, y, x), the reference's bands before the image's, to (batch,
        2) pixels, such as ShiftNet.
    colours
        Module from the image's bands to the reference's.
    estimate_px
        Side of the central square that the estimator sees, 128 for ShiftNet.
    border_px
        Pixels left out at the edges, where shifting invents values; 3 in HighRes-net's public code.
    """

    def __init__(
        self, estimator: nn.Module, *, colours: nn.Module, estimate_px: int, border_px: int = 3
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.colours = colours
        self.estimate_px = estimate_px
        self.border_px = border_px

    def forward(
        self, image: Tensor, target: Tensor, *, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find out how an image lies on its reference.

        Parameters
        ----------
        image
            Reflectance, (batch, band, y, x). Where it has another size than the reference (10 m
            over 2 against 4.77 m), it is resampled bicubically, both covering the same area.
        target
            The reference, (batch, reference band, y, x).
        valid
            bool, (batch, y, x): pixels of the reference that count.

        Returns
        -------
        matched, shifts_px, inside
            The image on the reference's grid in its colours; by how much it is to be shifted,
            (batch, 2); and the valid pixels inside the border.
        """
        matched = self._match(image, target)
        inside = valid & erode_mask(torch.ones_like(valid), self.border_px)
        return matched, self._estimate(matched, target, valid), inside

    def _match(self, image: Tensor, target: Tensor) -> Tensor:
        resampled = widen(image)
        if image.shape[-2:] != target.shape[-2:]:
            resampled = F.interpolate(resampled, size=target.shape[-2:], mode="bicubic")
        matched: Tensor = self.colours(resampled)
        return matched

    def _estimate(self, image: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        # Where the reference has no value, the image stands in: equal pixels name no direction.
        filled = torch.where(valid[:, None], target.to(image), image)
        pair = torch.cat([filled, image], dim=1)
        top, left = ((side - self.estimate_px) // 2 for side in pair.shape[-2:])
        if min(top, left) < 0:
            raise ValueError(
                f"images of {pair.shape[-2]} x {pair.shape[-1]} px are smaller than the "
                f"{self.estimate_px} px from which their shift is estimated"
            )
        shifts_px: Tensor = self.estimator(
            pair[..., top : top + self.estimate_px, left : left + self.estimate_px]
        )
        return shifts_px
