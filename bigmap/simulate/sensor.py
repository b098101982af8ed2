"""The instrument: from the ground at 2.5 m to noisy pixels of 10, 20 and 60 m."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from bigmap.draws import F64, derive_seed, hash_ints
from bigmap.simulate.noise import F32, to_normal
from bigmap.simulate.patch import FINE_M


@dataclass(frozen=True)
class Band:
    """One band of the MultiSpectral Instrument."""

    code: str
    gsd_m: int
    mtf: float
    """Modulation transfer at the Nyquist frequency of the band's own sampling."""
    radiance: float
    """Reference radiance, W/m2/sr/um."""
    snr: float
    """Signal to noise ratio at the reference radiance."""
    irradiance: float
    """Solar irradiance outside the atmosphere, W/m2/um."""
    wavelength_um: float
    width_um: float

    @property
    def sigma_m(self) -> float:
        """Standard deviation of the Gaussian point spread with this MTF, in metres."""
        return spread_of(self.gsd_m, self.mtf)


def spread_of(gsd_m: float, mtf: float) -> float:
    """Return the standard deviation in metres of the Gaussian with an MTF at Nyquist.

    A Gaussian has MTF(f) = exp(-2 (pi sigma f)^2), and Nyquist is f = 1 / (2 gsd).
    """
    return float(gsd_m * np.sqrt(-2 * np.log(mtf)) / np.pi)


MSI = {
    "coastal": Band("B01", 60, 0.32, 129.0, 129, 1884.69, 0.443, 0.027),
    "blue": Band("B02", 10, 0.26, 128.0, 154, 1959.66, 0.490, 0.098),
    "green": Band("B03", 10, 0.28, 128.0, 168, 1823.24, 0.560, 0.045),
    "red": Band("B04", 10, 0.24, 108.0, 142, 1512.06, 0.665, 0.038),
    "rededge1": Band("B05", 20, 0.38, 74.5, 117, 1424.64, 0.704, 0.019),
    "rededge2": Band("B06", 20, 0.34, 68.0, 89, 1287.61, 0.740, 0.018),
    "rededge3": Band("B07", 20, 0.34, 67.0, 105, 1162.08, 0.783, 0.028),
    "nir": Band("B08", 10, 0.26, 103.0, 174, 1041.63, 0.842, 0.145),
    "nir08": Band("B8A", 20, 0.33, 52.5, 72, 955.32, 0.865, 0.033),
    "nir09": Band("B09", 60, 0.26, 9.0, 114, 812.92, 0.945, 0.026),
    "swir16": Band("B11", 20, 0.22, 4.0, 100, 245.59, 1.610, 0.143),
    "swir22": Band("B12", 20, 0.23, 1.5, 100, 85.25, 2.190, 0.242),
}
"""The bands of L2A products by common name (L2A has no cirrus band).

Reference radiance and SNR are the mission requirements (M. Drusch et al. 2012,
doi:10.1016/j.rse.2011.11.026, table 1); the satellites do better. MTF are the measured values
of the L1C data quality reports as used for sharpening (M. Ulfarsson et al. 2019,
doi:10.1109/TGRS.2019.2906048). Irradiances are those of Sentinel-2A's product metadata.
"""

READ_NOISE_SHARE = 0.4
"""Share of the noise variance at the reference radiance that does not grow with the signal.

Our assumption; the mission's noise model coefficients differ by band.
"""


class Optics:
    """Point spread and sampling of a square patch, for one band and one shift.

    The image at pixel (row, column) is the Gaussian mean of the ground around the centre of
    that pixel moved by the shift. Where the shift is known, this is all that a
    super-resolution model may use: sampling at 10 m of a point spread whose MTF is 0.24 to
    0.28 at Nyquist leaves aliasing in the image.
    """

    def __init__(
        self, band: Band, *, pixels: int, margin_m: float, shift_m: tuple[float, float]
    ) -> None:
        east, north = shift_m
        size = round((pixels * band.gsd_m + 2 * margin_m) / FINE_M)
        # Rows run south, so a shift to the north is one towards smaller rows.
        self._rows = make_sampler(
            band.gsd_m, band.sigma_m, pixels=pixels, size=size, start_m=margin_m - north
        )
        self._columns = make_sampler(
            band.gsd_m, band.sigma_m, pixels=pixels, size=size, start_m=margin_m + east
        )

    def observe(self, ground: F32) -> F32:
        """Return the image of a square patch, float32 (pixels, pixels), of float32 (y, x)."""
        sampled: F32 = self._rows @ ground
        return np.asarray((self._columns @ np.ascontiguousarray(sampled.T)).T)


def make_sampler(
    gsd_m: float, sigma_m: float, *, pixels: int, size: int, start_m: float
) -> scipy.sparse.csr_array:
    """Return the matrix that samples one axis through the point spread.

    Parameters
    ----------
    pixels, size
        Number of image pixels and of fine ones.
    start_m
        From the edge of the fine pixels to that of the image, in metres.
    """
    centres = start_m + (np.arange(pixels) + 0.5) * gsd_m
    reach = int(np.ceil(3.2 * sigma_m / FINE_M))
    middle = np.floor(centres / FINE_M).astype(np.int64)
    columns = middle[:, None] + np.arange(-reach, reach + 1)
    apart = (columns + 0.5) * FINE_M - centres[:, None]
    weights = np.exp(-0.5 * (apart / sigma_m) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(pixels), columns.shape[1])
    matrix = scipy.sparse.coo_array(
        (weights.astype(np.float32).ravel(), (rows, columns.ravel())), shape=(pixels, size)
    )
    return scipy.sparse.csr_array(matrix)


def draw_noise(
    seed: int, band: Band, reflectance: F32, *, corner: tuple[int, int], sun_elevation: F32
) -> F32:
    """Draw the noise of the detector for each pixel.

    Parameters
    ----------
    reflectance
        float32 (y, x).
    corner
        Row and column of the first pixel on the zone's lattice, so that the noise of a pixel
        does not depend on the window, and overlapping tiles show the same.
    sun_elevation
        In degrees, (y, x); a low sun means less signal.
    """
    rows = corner[0] + np.arange(reflectance.shape[0])[:, None]
    columns = corner[1] + np.arange(reflectance.shape[1])[None, :]
    bits = hash_ints(derive_seed(seed, band.code), rows, columns)
    per_radiance = np.pi / (band.irradiance * np.sin(np.radians(sun_elevation)))
    reference = per_radiance * band.radiance
    signal = np.maximum(reflectance, 0) / reference
    share = READ_NOISE_SHARE + (1 - READ_NOISE_SHARE) * signal
    noise = to_normal(bits) * np.sqrt(share) * (reference / band.snr)
    return np.asarray(noise.astype(np.float32))


def box_mean(values: F32 | F64, factor: int) -> F32:
    """Average squares of ``factor`` x ``factor`` pixels, float32."""
    height, width = values.shape
    blocks = values.reshape(height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))
