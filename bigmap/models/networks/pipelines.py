"""Buildings from super-resolved or upsampled views: the inputs that Razzak et al. compare.

Razzak et al., "Multi-spectral multi-image super-resolution of Sentinel-2 with radiometric
consistency losses and its effect on building delineation", 2021, section 4.1: one HRNet on each
of five inputs. The fifth, images of another sensor at their native resolution, is the paper's
upper bound and no map from Sentinel-2, so it is not here.
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
from bigmap.models.layers import BandStatistics, mean_over_dates, upsample_bicubic
from bigmap.models.legends import BUILDINGS
from bigmap.models.networks.composites import CLEAREST_RADIUS_PX, count_around
from bigmap.models.networks.highresnet import HighresnetModel
from bigmap.models.networks.hrnet import EFFECTIVE_RADIUS_PX, STRIDE, TOLERANCE, HRNet
from bigmap.models.networks.hrnet import SIZES as HRNET_SIZES
from bigmap.models.networks.ndvi import CUBIC_RADIUS_PX
from bigmap.models.networks.single_image import choose_size, find_multiple, run_in_multiples
from bigmap.models.networks.srresnet import SrresnetModel

UPSCALE = 2
"""The whole factor next to the paper's 2.096."""

VIEWS = {
    "best": "bicubic best view",
    "best-four": "four best views, bicubic",
    "single": "SRResNet of the best view",
    "multi": "HighRes-net of all views",
}


class ClearestViews(nn.Module):
    """The clearest views of each pixel, bicubically upsampled, one after the other.

    Parameters
    ----------
    bands
        Common names.
    count
        How many views.
    """

    halo_px = CUBIC_RADIUS_PX + CLEAREST_RADIUS_PX

    def __init__(self, bands: tuple[str, ...], count: int) -> None:
        super().__init__()
        self.statistics = BandStatistics(bands)
        self.count = count

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Return ``image``, (batch, view * band, y * 2, x * 2), reflectance."""
        views = pick_clearest_views(reflectance, dates, clear, count=self.count)
        return {"image": upsample_bicubic(views.flatten(1, 2), UPSCALE)}


def pick_clearest_views(reflectance: Tensor, dates: Tensor, clear: Tensor, *, count: int) -> Tensor:
    """Order the clear dates of each pixel by how clear they are around it.

    The paper takes the clearest revisits of a scene. Here a pixel must not depend on where a
    window starts, so that, our reading, its clear dates are ordered by the number of clear pixels
    in the box of 17 x 17 px around it, equal ones by time. The first is the composite
    ``clearest`` of :func:`bigmap.models.networks.composites.compose`. Where there are fewer clear
    dates than views, they come again in the same order; where there is none, each view is the mean
    of the valid dates.

    Parameters
    ----------
    reflectance, dates, clear
        As for :meth:`bigmap.models.base.MapModel.forward`.
    count
        How many views.

    Returns
    -------
    torch.Tensor
        float32, (batch, view, band, y, x).
    """
    seen = clear & dates[:, :, None, None]
    scores = torch.where(seen, count_around(seen), -1)
    order = scores.argsort(dim=1, descending=True, stable=True)
    number = seen.sum(dim=1, keepdim=True).clamp(min=1)
    places = torch.cat([order.gather(1, view % number) for view in range(count)], dim=1)
    bands = reflectance.shape[2]
    views = reflectance.gather(1, places.unsqueeze(2).expand(-1, -1, bands, -1, -1))
    mean = mean_over_dates(reflectance, dates).unsqueeze(1)
    return torch.where(seen.any(dim=1)[:, None, None], views, mean)


class SrHrnetModel(NetworkModel):
    """HRNet on upsampled or super-resolved views, for buildings.

    Parameters
    ----------
    views
        ``best``: the clearest view, bicubic; ``best-four``: the four clearest, bicubic and
        concatenated; ``single``: SRResNet of the clearest; ``multi``: HighRes-net of all views,
        cloudy ones too. What is clearest is told by :func:`pick_clearest_views`.
    size
        ``full`` or ``small``, of all networks.
    bands
        Common names, any number.
    legend
        Classes; by default buildings.

    Raises
    ------
    ValueError
        If an option is not one of these.

    Notes
    -----
    The paper trains the super-resolution beforehand and leaves it as it is. Here it is a part,
    ``resolver``, of this model's weights: its image goes on to the segmentation, and is returned
    for a loss.
    """

    heap_share = 2.05

    def __init__(
        self,
        *,
        views: str = "best",
        size: str = "full",
        bands: tuple[str, ...] = ("blue", "green", "red"),
        legend: tuple[ClassEntry, ...] = BUILDINGS,
    ) -> None:
        super().__init__()
        hrnet = choose_size(HRNET_SIZES, size)
        if views not in VIEWS:
            raise ValueError(f"views {views!r} is unknown; there are {', '.join(VIEWS)}")
        self.resolver = _make_resolver(views, size, bands)
        count = self.resolver.count if isinstance(self.resolver, ClearestViews) else 1
        self.network = HRNet(count * len(bands), len(legend), hrnet)
        layers = (probability_layer(legend),)
        halo_px, max_dates = self._describe_resolver()
        self.spec = ModelSpec(
            name="sr-hrnet",
            title=f"HRNet on views of Sentinel-2: {VIEWS[views]}",
            paper="Razzak et al. 2021",
            bands=bands,
            upscale=UPSCALE,
            halo_px=math.ceil(EFFECTIVE_RADIUS_PX / UPSCALE) + halo_px,
            kind="large-field",
            legend=legend,
            extra_layers=layers if self._is_bicubic else (image_layer(bands), *layers),
            multiple_px=find_multiple(STRIDE, UPSCALE),
            max_dates=max_dates,
            tolerance=TOLERANCE,
        )

    @property
    def statistics(self) -> BandStatistics:
        """Statistics of the bands, the same for both networks."""
        return self.resolver.statistics

    @property
    def _is_bicubic(self) -> bool:
        return isinstance(self.resolver, ClearestViews)

    def _describe_resolver(self) -> tuple[int, int | None]:
        if isinstance(self.resolver, ClearestViews):
            return self.resolver.halo_px, None
        return self.resolver.spec.halo_px, self.resolver.spec.max_dates

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Segment windows; ``image`` is there where a network made it.

        See :meth:`NetworkModel.compute`.
        """
        image = self.resolver.compute(reflectance, dates, clear)["image"]
        views = self.statistics(image.unflatten(1, (-1, len(self.spec.bands)))).flatten(1, 2)
        outputs = run_in_multiples(self.network, views, stride=STRIDE, training=self.training)
        return outputs if self._is_bicubic else outputs | {"image": image}


def _make_resolver(
    views: str, size: str, bands: tuple[str, ...]
) -> ClearestViews | SrresnetModel | HighresnetModel:
    if views == "single":
        return SrresnetModel(size=size, bands=bands, upscale=UPSCALE, composite="clearest")
    if views == "multi":
        return HighresnetModel(size=size, bands=bands, upscale=UPSCALE)
    return ClearestViews(bands, 4 if views == "best-four" else 1)
