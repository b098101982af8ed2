"""HighRes-net: many dates to one finer image, by fusing them in pairs.

Deudon et al. (2020), "HighRes-net: recursive fusion for multi-frame super-resolution of satellite
imagery", arXiv:2002.06460, for many bands as Razzak et al. (2021) use it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmap.models.base import ModelSpec, NetworkModel, image_layer
from bigmap.models.layers import BandStatistics
from bigmap.models.networks.steady import SteadyConv2d, SteadyConvTranspose2d

RGB = ("red", "green", "blue")
WIDTHS = {"full": 64, "small": 16}
REFERENCE_DATES = 9
"""How many dates the reference is the median of."""
ENCODER_REACH_PX = 6
FUSION_REACH_PX = 3
KERNELS = {2: (3, 4), 3: (3, 4), 4: (4,)}
"""Kernels of the decoder by upscale; the first is used where none is chosen."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each with a PReLU, beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Add what the convolutions find to (batch, channel, y, x)."""
        added: Tensor = features + self.body(features)
        return added


class HighResNet(nn.Module):
    """The network: an encoder for each date, one operator that fuses pairs, and a decoder.

    Parameters
    ----------
    fan_in, fan_out
        Bands of the dates and of the image.
    width
        Channels of the hidden layers.
    upscale
        Stride of the transposed convolution.
    kernel
        Side of its kernel; see :class:`bigmap.models.networks.steady.SteadyConvTranspose2d`.

    Notes
    -----
    With 64 channels: 591,818 parameters for one band, upscale 3 and a kernel of 3 (Deudon's, and
    the total of Razzak's table 2, whose other rows are those of one band too); 620,490 with a
    kernel of 4; 594,252 for three bands and 604,620 from twelve to three with a kernel of 3. The
    count does not depend on the stride: Razzak's is 2.
    """

    def __init__(
        self, fan_in: int, fan_out: int, *, width: int = 64, upscale: int = 3, kernel: int = 3
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            SteadyConv2d(2 * fan_in, width, 3),
            nn.PReLU(),
            ResidualBlock(width),
            ResidualBlock(width),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.fusion = nn.Sequential(
            ResidualBlock(2 * width), nn.Conv2d(2 * width, width, 3, padding=1), nn.PReLU()
        )
        self.decoder = nn.Sequential(
            SteadyConvTranspose2d(width, width, kernel, stride=upscale),
            nn.PReLU(),
            SteadyConv2d(width, fan_out, 1),
        )

    def forward(self, views: Tensor, dates: Tensor) -> Tensor:
        """Fuse dates into one image.

        Parameters
        ----------
        views
            float32, (batch, time, band, y, x).
        dates
            bool, (batch, time): false for dates that only pad the batch.

        Returns
        -------
        torch.Tensor
            float32, (batch, band, y * upscale, x * upscale).
        """
        reference = find_reference(views, dates)
        # Only valid dates are encoded: the padding costs nothing and may hold anything.
        sample, place = dates.nonzero(as_tuple=True)
        stacked = torch.cat([views[sample, place], reference[sample]], dim=1)
        image: Tensor = self.decoder(self.fuse(self.encoder(stacked), dates))
        return image

    def fuse(self, encoded: Tensor, dates: Tensor) -> Tensor:
        """Fuse the encodings of each sample's dates, pair by pair.

        The views are filled up to a power of two with empty ones at the end. In each round the
        first half is paired with the second half, reversed, and becomes
        ``first + mask * fusion(first, second)``, with a mask of 0 where the second is empty
        (alpha-residual). Any number of dates takes part, odd ones too, and more empty views
        change nothing: they pass the first half on as it is.

        Parameters
        ----------
        encoded
            float32, (view, channel, y, x): the valid dates of all samples, in the order of
            ``dates``.
        dates
            bool, (batch, time).

        Returns
        -------
        torch.Tensor
            float32, (batch, channel, y, x).
        """
        views = dates.sum(dim=1)
        slots = 1 << count_rounds(int(views.max()))
        is_valid = torch.arange(slots, device=dates.device) < views[:, None]
        state = encoded.new_zeros(*is_valid.shape, *encoded.shape[1:])
        # Places, not masks: their number is known before the values are, as a dry pass needs it.
        state[is_valid.nonzero(as_tuple=True)] = encoded
        while slots > 1:
            slots //= 2
            first, second = state[:, :slots], state[:, slots:].flip(1)
            paired = is_valid[:, slots:].flip(1).nonzero(as_tuple=True)
            fused = self.fusion(torch.cat([first[paired], second[paired]], dim=1))
            added = torch.zeros_like(first)
            added[paired] = fused.to(added.dtype)
            state, is_valid = first + added, is_valid[:, :slots]
        return state[:, 0]


def find_reference(views: Tensor, dates: Tensor) -> Tensor:
    """Return the median of the first nine valid dates, band by band.

    Of an even number of dates it is the lower of the two in the middle, as ``torch.median`` has
    it. The order of these dates does not matter.

    Parameters
    ----------
    views, dates
        float32 (batch, time, band, y, x), and bool (batch, time).

    Returns
    -------
    torch.Tensor
        float32, (batch, band, y, x).
    """
    first = dates & (dates.cumsum(dim=1) <= REFERENCE_DATES)
    # Dates that do not count sort behind all others.
    ranked = torch.where(first[:, :, None, None, None], views, torch.inf).sort(dim=1).values
    middle = (first.sum(dim=1) - 1) // 2
    return ranked[torch.arange(len(views), device=views.device), middle]


def count_rounds(dates: int) -> int:
    """Count the rounds in which a number of dates is fused."""
    return (dates - 1).bit_length()


class HighresnetModel(NetworkModel):
    """Super-resolved reflectance from many dates.

    Parameters
    ----------
    size
        ``full`` or ``small``: 64 or 16 channels.
    bands
        Common names; red, green and blue in Razzak's paper, one band in Deudon's.
    output_bands
        Common names of the image's bands, out of ``bands``, separated by commas; by default all.
    upscale
        2 (Razzak), 3 (Deudon) or 4.
    kernel
        Of the transposed convolution: 3 or 4 for upscale 2 and 3, 4 for upscale 4; 0 takes the
        first of these. With 4 at upscale 2 it lies centred on its input pixel.
    sigmoid
        Whether the image is the sigmoid of the network's output, and so between 0 and 1 in
        reflectance (Razzak). Otherwise (Deudon) the output is standardised reflectance without
        bounds, for what is brighter than 1, as snow and cloud may be.
    max_dates
        The greatest number of dates that the halo holds for.

    Notes
    -----
    Dates come in the order of time. They are paired by their place in it, so another order gives
    another image; only the reference does not change with the order of the dates it is made of.

    Input is standardised reflectance of all dates, cloudy ones too: as in the papers, the
    reference and the network must find out what is cloud. The stride-2 decoder of Razzak's code
    yields one pixel more, which is resampled to the 4.77 m of the reference; here the map's
    pixels are halves of the input's exactly, and resampling is left to the loss.

    The last bias starts at the mean reflectance (our choice).
    """

    def __init__(
        self,
        *,
        size: str = "full",
        bands: tuple[str, ...] = RGB,
        output_bands: str = "",
        upscale: int = 2,
        kernel: int = 0,
        sigmoid: bool = True,
        max_dates: int = 16,
    ) -> None:
        super().__init__()
        if size not in WIDTHS:
            raise ValueError(f"size {size!r} is not full or small")
        kernel = _choose_kernel(upscale, kernel)
        if max_dates < 1:
            raise ValueError(f"max_dates {max_dates} is not a number of dates, 1 or more")
        wanted = _choose_bands(output_bands, bands)
        self.statistics = BandStatistics(bands)
        self.network = HighResNet(
            len(bands), len(wanted), width=WIDTHS[size], upscale=upscale, kernel=kernel
        )
        self.sigmoid = sigmoid
        self.output_indices = [bands.index(band) for band in wanted]
        self._start_at_mean()
        decoder_reach = int(kernel > upscale)
        self.spec = ModelSpec(
            name="highres-net",
            title="HighRes-net, super-resolution from many dates",
            paper="Deudon et al. 2020",
            bands=bands,
            upscale=upscale,
            halo_px=ENCODER_REACH_PX + FUSION_REACH_PX * count_rounds(max_dates) + decoder_reach,
            kind="exact",
            extra_layers=(image_layer(wanted),),
            max_dates=max_dates,
        )

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Run the network; see :meth:`NetworkModel.compute`."""
        del clear
        values = self.network(self.statistics(reflectance), dates)
        if self.sigmoid:
            # In float32 its last bit depends on the place in memory, of which the vector unit
            # leaves the last few values to other code.
            return {"image": torch.sigmoid(values.double()).float()}
        mean, std = (
            statistic[self.output_indices][:, None, None]
            for statistic in (self.statistics.mean, self.statistics.std)
        )
        return {"image": values * std + mean}

    @torch.no_grad()
    def _start_at_mean(self) -> None:
        last = self.network.decoder[2]
        assert isinstance(last, SteadyConv2d)
        assert last.bias is not None
        last.bias.zero_()
        if self.sigmoid:
            mean = self.statistics.mean[self.output_indices]
            last.bias.copy_(torch.logit(mean, eps=0.01))


def _choose_kernel(upscale: int, kernel: int) -> int:
    if upscale not in KERNELS:
        raise ValueError(f"upscale {upscale} is not 2, 3 or 4")
    if kernel and kernel not in KERNELS[upscale]:
        choice = " or ".join(map(str, KERNELS[upscale]))
        raise ValueError(f"kernel {kernel} does not go with upscale {upscale}; take {choice}")
    return kernel or KERNELS[upscale][0]


def _choose_bands(names: str, bands: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in names.split(",")) if names else bands
    for band in chosen:
        if band not in bands:
            raise ValueError(f"output_bands: {band!r} is not among the bands {', '.join(bands)}")
    return chosen
