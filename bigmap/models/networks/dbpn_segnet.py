"""D-DBPN and SegNet trained as one network.

Pereira & dos Santos, "An end-to-end framework for low-resolution remote sensing semantic
segmentation", LAGIRS 2020: the super-resolved image feeds the segmentation directly, so that the
loss of the classes also shapes the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bigmap.models.base import (
    ClassEntry,
    ModelSpec,
    NetworkModel,
    image_layer,
    probability_layer,
)
from bigmap.models.layers import BandStatistics
from bigmap.models.legends import CROPLAND
from bigmap.models.networks.composites import COMPOSITE_HALO_PX, check_composite, compose
from bigmap.models.networks.dbpn import DDBPN, check_dbpn, find_dbpn_radius, run_singly
from bigmap.models.networks.dbpn import SIZES as DBPN_SIZES
from bigmap.models.networks.segnet import SIZES as SEGNET_SIZES
from bigmap.models.networks.segnet import SegNet, find_segnet_multiple, find_segnet_radius


class DbpnSegnet(nn.Module):
    """D-DBPN, then SegNet on its image.

    Parameters
    ----------
    bands, classes
        Channels of the image, and of the logits.
    upscale
        2, 4 or 8.
    size
        ``full`` or ``small``, of both parts.
    """

    def __init__(self, bands: int, classes: int, upscale: int, *, size: str = "full") -> None:
        super().__init__()
        features, width, stages = DBPN_SIZES[size]
        self.resolver = DDBPN(bands, upscale, features=features, width=width, stages=stages)
        self.segmenter = SegNet(bands, classes, SEGNET_SIZES[size])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the super-resolved image and the logits of (batch, band, y, x)."""
        fine = self.resolver(image)
        return fine, self.segmenter(fine)


class DbpnSegnetModel(NetworkModel):
    """Segmentation and the image it was made from, of a composite of the clear dates.

    Both networks work on standardised reflectance (our choice; the paper's on 8-bit images).
    Exact: neither has an operation on the whole window, and the halo covers both receptive fields.

    Parameters
    ----------
    upscale
        Output pixels per input pixel: 2, 4 or 8. The paper has 4 and 8.
    composite
        How dates become the one image that the paper's network takes; see
        :func:`bigmap.models.networks.composites.compose`. Our choice: the median.
    size
        ``full``, or ``small``, of both parts; see :class:`bigmap.models.networks.dbpn.DbpnModel`
        and :class:`bigmap.models.networks.segnet.SegnetModel`.
    bands
        Common names, any number. The paper's images are RGB, or near infrared, red and green.
    legend
        Classes. Each has its logit, also where there are two, since the paper trains a softmax
        by cross-entropy.

    Raises
    ------
    ValueError
        If an option is not one of these.
    """

    def __init__(
        self,
        *,
        upscale: int = 4,
        composite: str = "median",
        size: str = "full",
        bands: tuple[str, ...] = ("red", "green", "blue"),
        legend: tuple[ClassEntry, ...] = CROPLAND,
    ) -> None:
        super().__init__()
        check_dbpn(size, upscale)
        check_composite(composite)
        levels = SEGNET_SIZES[size]
        segnet_px = math.ceil(find_segnet_radius(levels) / upscale)
        dbpn_px = find_dbpn_radius(upscale, DBPN_SIZES[size][-1])
        self.composite = composite
        self.statistics = BandStatistics(bands)
        self.network = DbpnSegnet(len(bands), len(legend), upscale, size=size)
        self.spec = ModelSpec(
            name="dbpn-segnet",
            title="D-DBPN and SegNet trained end to end",
            paper="Pereira & dos Santos 2020",
            bands=bands,
            upscale=upscale,
            halo_px=segnet_px + dbpn_px + COMPOSITE_HALO_PX[composite],
            kind="exact",
            legend=legend,
            extra_layers=(image_layer(bands), probability_layer(legend)),
            multiple_px=find_segnet_multiple(upscale, levels),
        )

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Super-resolve and segment windows; see :meth:`NetworkModel.compute`."""
        single = self.statistics(compose(reflectance, dates, clear, self.composite))
        single = single.contiguous(memory_format=torch.channels_last)
        if self.training:
            image, logits = self.network(single)
        else:
            both = run_singly(lambda one: torch.cat(self.network(one), dim=1), single)
            image, logits = both.tensor_split([len(self.spec.bands)], dim=1)
        return {"logits": logits, "image": self.statistics.restore(image)}
