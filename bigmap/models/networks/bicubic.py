"""Bicubic interpolation of a composite, the baseline of super-resolution."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bigmap.models.base import MapModel, ModelSpec, image_layer
from bigmap.models.layers import upsample_bicubic
from bigmap.models.networks.composites import COMPOSITE_HALO_PX, check_composite, compose
from bigmap.models.networks.ndvi import CUBIC_RADIUS_PX, FILL_RADIUS_PX, fill_holes

RGB = ("red", "green", "blue")


class BicubicModel(MapModel):
    """Reflectance of a composite of the dates, interpolated; Razzak et al. (2021) compare with it.

    Parameters
    ----------
    bands
        Common names.
    upscale
        Output pixels per input pixel, 1 to 8.
    composite
        ``median``, ``mean`` or ``clearest``: see :func:`bigmap.models.networks.composites.compose`.
        The paper takes the clearest date.

    Notes
    -----
    A pixel that is never clear takes the mean of those around it, so that it does not stain them.
    """

    has_weights = False

    def __init__(
        self, *, bands: tuple[str, ...] = RGB, upscale: int = 2, composite: str = "median"
    ) -> None:
        super().__init__()
        if not 1 <= upscale <= 8:
            raise ValueError(f"upscale {upscale} is not between 1 and 8")
        check_composite(composite)
        self.composite = composite
        around = 0 if upscale == 1 else CUBIC_RADIUS_PX + FILL_RADIUS_PX
        self.spec = ModelSpec(
            name="bicubic",
            title="Bicubic interpolation of a composite",
            paper="Razzak et al. 2021",
            bands=bands,
            upscale=upscale,
            halo_px=COMPOSITE_HALO_PX[composite] + around,
            kind="exact",
            extra_layers=(image_layer(bands),),
        )

    def forward(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> Mapping[str, Tensor]:
        """Score windows; see :meth:`MapModel.forward`."""
        image = compose(reflectance, dates, clear, self.composite)
        if self.spec.upscale == 1:
            return {"image": image}
        seen = (clear & dates[:, :, None, None]).any(dim=1)[:, None].expand_as(image)
        filled = fill_holes(image.flatten(0, 1), seen.flatten(0, 1)).view_as(image)
        return {"image": upsample_bicubic(filled, self.spec.upscale)}
