"""One datatake over one patch: reflectance as L2A delivers it, and its scene classification."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bigmap.draws import F64, derive_seed, hash_ints
from bigmap.scenes.items import BANDS
from bigmap.simulate.acquisitions import ALTITUDE_KM, HALF_SWATH_KM, Datatake
from bigmap.simulate.classification import Scene, classify_scene
from bigmap.simulate.covers import Cover
from bigmap.simulate.landscape import Landscape
from bigmap.simulate.noise import F32, to_normal
from bigmap.simulate.painting import paint_ground
from bigmap.simulate.patch import Patch, average_nodes, refine
from bigmap.simulate.sensor import MSI, Band, Optics, box_mean, draw_noise
from bigmap.simulate.shadows import LIGHT_LEFT, cast_shadows
from bigmap.simulate.spectra import ENDMEMBERS, mix_spectra
from bigmap.simulate.weather import Weather, sample_snow, sample_weather

MARGIN_M = 160
"""Ground around an image: for the widest point spread (3.2 sigma at 60 m), shifts and shadows."""
RELIEF_LEFT = 0.5
"""Exponent of the terrain's effect on light that the correction leaves; an assumption."""
STRIPE = 0.002
"""Standard deviation of the gain of detector columns: within the 0.3 % of their calibration."""
GAIN = 0.01
"""Standard deviation of a datatake's gain by band, for what atmosphere and calibration leave."""
ANGLE_EFFECT = {10: 0.42, 20: 0.32, 60: 0.42}
"""Relative change of reflectance per sine of the view angle, by pixel size: up to 8 %.

The size of the effect is that found between the edges of swaths (D. P. Roy et al. 2017,
doi:10.1016/j.rse.2017.06.019); that it is linear, and its values, are our simplification.
"""
_CLASSIFIED = ("blue", "red", "nir08")
_FOREST_SNOW = 0.3
"""Share of the snow that shows through trees."""


@dataclass(frozen=True)
class Observation:
    """A datatake over a square patch whose landscape is grown by :data:`MARGIN_M`."""

    datatake: Datatake
    landscape: Landscape
    patch: Patch
    """The patch to image; ``landscape.patch`` is larger by the margin on each side."""

    @cached_property
    def sun(self) -> tuple[F64, F64]:
        """Azimuth and elevation of the sun at the nodes of the patch, in degrees."""
        return self.datatake.locate_sun(*self.patch.lonlat)

    @cached_property
    def weather(self) -> Weather:
        """The sky at the nodes of the patch."""
        return sample_weather(
            self.datatake.seed, *self.patch.nodes, sun=self.sun, north=self.patch.north
        )

    @cached_property
    def cross_track_km(self) -> F64:
        """Distance to the ground track at the nodes of the patch."""
        return self.datatake.cross_track_km(*self.patch.lonlat)

    @cached_property
    def _spectra(self) -> tuple[F32, F32]:
        return mix_spectra(self.landscape.units, self.datatake.node.date())

    def observe_band(self, name: str) -> F32:
        """Return surface reflectance as seen, float32 (y, x) at the band's own resolution.

        NaN outside the swath.
        """
        band, gsd = MSI[name], MSI[name].gsd_m
        image = self._see_ground(name)
        image *= self._to_pixels(self._light, gsd) * self._respond(name)
        self._add_sky(image, name)
        elevation = self._to_pixels(self.sun[1].astype(np.float32), gsd)
        corner = -self.patch.top_m // gsd, self.patch.left_m // gsd
        image += draw_noise(self.datatake.seed, band, image, corner=corner, sun_elevation=elevation)
        image[~self._in_swath(name)] = np.nan
        return image

    def classify(self) -> npt.NDArray[np.uint8]:
        """Return a scene classification with Sen2Cor's kinds of error, uint8 (y, x) at 20 m."""
        seed = derive_seed(self.datatake.seed, "scl")
        place = [refine(part, 1) for part in self.patch.nodes]
        scl = classify_scene(seed, self.describe_scene(), *place)
        scl[~self._in_swath("nir08")] = 0
        return scl

    def describe_scene(self) -> Scene:
        """Return what decides the scene classification, with the true state of sky and ground."""
        sky = self.weather
        blue, red, nir = (self._see_coarsely(name) for name in _CLASSIFIED)
        return Scene(
            cover=self._cover_at_20m,
            border=self._border_at_20m,
            blue=blue,
            red=red,
            nir=nir,
            cloud=refine(sky.cloud, 1),
            cirrus=refine(sky.cirrus, 1),
            shade=refine(sky.shade, 1),
            snow=self._snow,
        )

    def paint(self, name: str) -> F32:
        """Return the reflectance of the ground under this sun, float32 (y, x) at 2.5 m.

        The margin is part of it; its outermost 40 m lack the shadows that fall in from outside.
        """
        if name in self._painted:
            return self._painted[name]
        ground = paint_ground(self.landscape, self._spectra, {name: 1.0})
        light = self._shade * np.float32(LIGHT_LEFT[BANDS.index(name)] - 1)
        light += np.float32(1)
        ground *= light
        if name in _CLASSIFIED:
            self._painted[name] = ground
        return ground

    @cached_property
    def _painted(self) -> dict[str, F32]:
        """The bands of the scene classification, which are needed twice."""
        return {}

    @cached_property
    def _shade(self) -> F32:
        """Where trees and buildings take the sun, 1 or 0, float32 (y, x) at 2.5 m."""
        sun = self.datatake.locate_sun(*self.landscape.patch.lonlat)
        return cast_shadows(self.landscape.height, *sun)

    def _see_ground(self, name: str) -> F32:
        band = MSI[name]
        optics = Optics(
            band,
            pixels=self.patch.rows * 20 // band.gsd_m,
            margin_m=MARGIN_M,
            shift_m=self.datatake.shift_m(name, band.gsd_m),
        )
        image = optics.observe(self.paint(name))
        if self._snow.any():
            bright = np.float32(ENDMEMBERS["snow"][BANDS.index(name)])
            image += self._resize(self._snow, band.gsd_m) * (bright - image)
        return image

    def _see_coarsely(self, name: str) -> F32:
        """Return a band as the classifier sees it: at 20 m, with sky, without noise."""
        sharp = MSI["nir08"]
        optics = Optics(sharp, pixels=self.patch.rows, margin_m=MARGIN_M, shift_m=(0, 0))
        image = optics.observe(self.paint(name)) * self._to_pixels(self._light, 20)
        self._add_sky(image, name, gsd=20)
        return image

    def _add_sky(self, image: F32, name: str, gsd: int = 0) -> None:
        band, sky = MSI[name], self.weather
        gsd = gsd or band.gsd_m
        # Path radiance falls with wavelength as continental aerosol does (Angstrom 1.3).
        share = np.float32((MSI["blue"].wavelength_um / band.wavelength_um) ** 1.3)
        image += self._to_pixels(sky.haze, gsd) * share
        ice = _ICE[BANDS.index(name)]
        image += self._to_pixels(sky.cirrus, gsd) * (np.float32(0.6) * ice - image)
        if sky.cloud.any():
            bright = self._to_pixels(sky.brightness, gsd) * ice
            image += self._to_pixels(sky.cloud, gsd) * (bright - image)

    @cached_property
    def _light(self) -> F32:
        """Light at the nodes relative to flat sunlit ground."""
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
        relief = np.clip(cosine, 0.1, 2.5) ** RELIEF_LEFT
        return np.asarray((relief * (1 - self.weather.shade)).astype(np.float32))

    def _respond(self, name: str) -> F32:
        """Return gain, detector stripes and view-angle effect for each pixel of a band."""
        band = MSI[name]
        across = self._to_pixels(self.cross_track_km.astype(np.float32), band.gsd_m)
        seed = derive_seed(self.datatake.platform == "sentinel-2a", "stripes", name)
        column = np.floor(self._across_m(band) / band.gsd_m).astype(np.int64)
        stripe = STRIPE * to_normal(hash_ints(seed, column))
        gain = GAIN * to_normal(hash_ints(derive_seed(self.datatake.seed, "gain", name), 0))[0]
        # West of the track the satellite looks away from the morning sun: a brighter side.
        tilt = across / np.hypot(across, np.float32(ALTITUDE_KM))
        angle = -np.float32(ANGLE_EFFECT[band.gsd_m]) * tilt
        return np.asarray((1 + gain + stripe) * (1 + angle))

    def _across_m(self, band: Band) -> F64:
        nodes = self.cross_track_km * 1000
        if band.gsd_m == 10:
            return refine(nodes, 2)
        middle = average_nodes(nodes)
        step = band.gsd_m // 20
        return middle[step // 2 :: step, step // 2 :: step]

    @cached_property
    def _snow(self) -> F32:
        """Share of snow at 20 m, float32 (y, x)."""
        margin = MARGIN_M // 20
        inner = slice(margin, -margin)
        day = self.datatake.node.timetuple().tm_yday
        open_ground = sample_snow(
            self.datatake.seed,
            self.landscape.relief.elevation_m[inner, inner],
            *self.patch.nodes,
            day_of_year=day,
        )
        trees = np.isin(self._cover_at_20m, (Cover.BROADLEAF, Cover.CONIFER))
        return refine(open_ground, 1) * np.where(trees, _FOREST_SNOW, 1).astype(np.float32)

    @cached_property
    def _cover_at_20m(self) -> npt.NDArray[np.uint8]:
        """Cover near the middle of each pixel of 20 m, uint8 (y, x)."""
        margin = MARGIN_M // 20
        inner = slice(margin, -margin)
        return self.landscape.cover[4::8, 4::8][inner, inner]

    @cached_property
    def _border_at_20m(self) -> npt.NDArray[np.bool_]:
        """Where the cover differs from that of a neighbour, (y, x) at 20 m."""
        margin = MARGIN_M // 20
        cover = self.landscape.cover[4::8, 4::8]
        differs = np.zeros(cover.shape, dtype=bool)
        for axis in (0, 1):
            for step in (-1, 1):
                # What rolls over the edge stays in the margin.
                differs |= cover != np.roll(cover, step, axis=axis)
        return differs[margin:-margin, margin:-margin]

    def _resize(self, squares: F32, gsd_m: int) -> F32:
        if gsd_m == 10:
            return np.asarray(np.repeat(np.repeat(squares, 2, axis=0), 2, axis=1))
        return squares if gsd_m == 20 else box_mean(squares, gsd_m // 20)

    def _to_pixels(self, nodes: F32, gsd_m: int) -> F32:
        if gsd_m == 10:
            return refine(nodes, 2)
        middle = refine(nodes, 1)
        return middle if gsd_m == 20 else box_mean(middle, gsd_m // 20)

    def _in_swath(self, name: str) -> npt.NDArray[np.bool_]:
        """Return where a band has data; the bands' detectors end up to 600 m apart."""
        distance = self._to_pixels(self.cross_track_km.astype(np.float32), MSI[name].gsd_m)
        edge = HALF_SWATH_KM - 0.05 * list(MSI).index(name)
        return np.asarray(np.abs(distance) < edge)


def start_observation(datatake: Datatake, landscape: Landscape) -> Observation:
    """Prepare what one datatake sees of a landscape without its margin."""
    return Observation(datatake, landscape, landscape.patch.grow(-MARGIN_M))


_ICE = (0.25 + 0.75 * np.array(ENDMEMBERS["snow"]) / ENDMEMBERS["snow"][0]).astype(np.float32)
"""Colour of clouds relative to the visible: white, and darker where ice and water absorb."""
