"""One datatake over one patch: reflectance as L2A delivers it, and its scene classification."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bigmap.items import BANDS
from bigmap.simulate.acquisitions import HALF_SWATH_KM, Datatake, locate_sun
from bigmap.simulate.covers import ROOFS, Cover
from bigmap.simulate.landscape import Landscape
from bigmap.simulate.noise import F32, F64
from bigmap.simulate.patch import Patch, refine
from bigmap.simulate.sensor import MSI, Optics, box_mean, draw_noise
from bigmap.simulate.spectra import ENDMEMBERS, mix_spectra
from bigmap.simulate.weather import Weather, sample_weather

MARGIN_M = 120
"""Ground needed around an image for the widest point spread (3.2 sigma at 60 m) and shift."""
_SNOW = np.array(ENDMEMBERS["snow"], dtype=np.float32)
_CLOUD = 0.35 + 0.5 * _SNOW


@dataclass(frozen=True)
class Observation:
    """A datatake over a square patch whose landscape is grown by :data:`MARGIN_M`."""

    datatake: Datatake
    landscape: Landscape
    patch: Patch
    """The patch to image; ``landscape.patch`` is larger by the margin on each side."""

    @cached_property
    def sun(self) -> tuple[float, float]:
        """Azimuth and elevation of the sun, in degrees, at the middle of the patch."""
        longitude, latitude = (float(part.mean()) for part in self.patch.lonlat)
        return locate_sun(self.datatake.time_at(latitude), longitude, latitude)

    @cached_property
    def weather(self) -> Weather:
        """The sky at the nodes of the patch."""
        azimuth, elevation = self.sun
        return sample_weather(
            self.datatake.seed, *self.patch.nodes, sun_azimuth=azimuth, sun_elevation=elevation
        )

    @cached_property
    def cross_track_km(self) -> F64:
        """Distance to the ground track at the nodes of the patch."""
        return self.datatake.cross_track_km(*self.patch.lonlat)

    @cached_property
    def _spectra(self) -> tuple[F32, F32]:
        return mix_spectra(self.landscape.units, self.datatake.node.date())

    def observe_band(self, name: str) -> npt.NDArray[np.float32]:
        """Return surface reflectance as seen, float32 (y, x) at the band's own resolution.

        NaN outside the swath.
        """
        band = MSI[name]
        pixels = self.patch.rows * 20 // band.gsd_m
        optics = Optics(band, pixels=pixels, margin_m=MARGIN_M, shift_m=self.datatake.shift_m())
        image = optics.observe(self._paint(BANDS.index(name)))
        image *= self._to_pixels(self._light, band.gsd_m)
        sky = self.weather
        blue = (0.49 / band.wavelength_um) ** 1.6
        image += self._to_pixels(sky.haze, band.gsd_m) * np.float32(blue)
        bright = _CLOUD[BANDS.index(name)]
        for opacity in (sky.cirrus, sky.cloud):
            cover = self._to_pixels(opacity, band.gsd_m)
            image += cover * (bright - image)
        _, elevation = self.sun
        corner = -self.patch.top_m // band.gsd_m, self.patch.left_m // band.gsd_m
        image += draw_noise(self.datatake.seed, band, image, corner=corner, sun_elevation=elevation)
        image[~self._in_swath(band.gsd_m)] = np.nan
        return image

    def classify(self) -> npt.NDArray[np.uint8]:
        """Return Sen2Cor's scene classification, uint8 (y, x) at 20 m."""
        sky = self.weather
        cover = self._majority()
        scl = _SCL_OF_COVER[cover]
        green = self._green()
        scl[(scl == 4) & (green < 0.35)] = 5
        cloud = self._to_pixels(sky.cloud, 20)
        scl[(self._to_pixels(sky.shade, 20) > 0.35) & (scl != 6)] = 3
        scl[self._to_pixels(sky.cirrus, 20) > 0.06] = 10
        scl[cloud > 0.25] = 8
        scl[cloud > 0.6] = 9
        scl[~self._in_swath(20)] = 0
        return scl

    def _paint(self, index: int) -> F32:
        mean, slope = self._spectra
        unit = self.landscape.unit
        ground = np.ascontiguousarray(slope[:, index])[unit]
        ground *= self.landscape.texture
        ground += np.ascontiguousarray(mean[:, index])[unit]
        return np.asarray(np.maximum(ground, np.float32(0.001), out=ground))

    @cached_property
    def _light(self) -> F32:
        """Return the light on each node relative to flat sunlit ground.

        Half of the terrain's effect remains after Sen2Cor's correction (an assumption), and
        under a cloud's shadow the diffuse light.
        """
        azimuth, elevation = (np.radians(angle) for angle in self.sun)
        margin = MARGIN_M // 20
        height = self.landscape.relief.elevation_m
        slope_y = (height[:-2, 1:-1] - height[2:, 1:-1]) / 40
        slope_x = (height[1:-1, 2:] - height[1:-1, :-2]) / 40
        inner = slice(margin - 1, 1 - margin)
        slope_y, slope_x = slope_y[inner, inner], slope_x[inner, inner]
        facing = np.sin(elevation) - np.cos(elevation) * (
            slope_x * np.sin(azimuth) + slope_y * np.cos(azimuth)
        )
        cosine = facing / np.sqrt(1 + slope_x**2 + slope_y**2) / np.sin(elevation)
        relief = np.sqrt(np.clip(cosine, 0.15, 2.0))
        return np.asarray(relief * (1 - self.weather.shade)).astype(np.float32)

    def _majority(self) -> npt.NDArray[np.uint8]:
        """Return the cover at the middle of each pixel of 20 m, uint8 (y, x)."""
        margin = MARGIN_M // 20
        inner = slice(margin, -margin)
        return self.landscape.cover[4::8, 4::8][inner, inner]

    def _green(self) -> F32:
        """Return the NDVI of each pixel of 20 m without noise."""
        red, nir = (
            Optics(MSI["nir08"], pixels=self.patch.rows, margin_m=MARGIN_M, shift_m=(0, 0)).observe(
                self._paint(BANDS.index(name))
            )
            for name in ("red", "nir08")
        )
        return np.asarray((nir - red) / (nir + red))

    def _to_pixels(self, nodes: F32, gsd_m: int) -> F32:
        if gsd_m == 10:
            return refine(nodes, 2)
        middle = refine(nodes, 1)
        return middle if gsd_m == 20 else box_mean(middle, gsd_m // 20)

    def _in_swath(self, gsd_m: int) -> npt.NDArray[np.bool_]:
        distance = self._to_pixels(self.cross_track_km.astype(np.float32), gsd_m)
        return np.asarray(np.abs(distance) < HALF_SWATH_KM)


def start_observation(datatake: Datatake, landscape: Landscape) -> Observation:
    """Prepare what one datatake sees of a landscape without its margin."""
    return Observation(datatake, landscape, landscape.patch.grow(-MARGIN_M))


def _classes() -> npt.NDArray[np.uint8]:
    table = np.full(len(Cover), 4, dtype=np.uint8)
    bare = (Cover.ROAD, Cover.TRACK, Cover.PAVED, Cover.ROCK, *ROOFS)
    table[list(bare)] = 5
    table[Cover.WATER] = 6
    table[Cover.SNOW] = 11
    return table


_SCL_OF_COVER = _classes()
