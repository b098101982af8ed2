"""When and how Sentinel-2 looks at a place: orbits, swaths, sun, shifts and weather.

Orbits follow the published ones: 143 revolutions in ten days, inclination 98.62 degrees, the
descending node at 10:30 local solar time, a swath of 290 km, and Sentinel-2B five days after
2A (ESA SP-1322/2). Their phase is set by one real acquisition (relative orbit 79 over
45.6 N on 2023-08-15), so that dates and relative orbits are those of the real mission from
2017 to 2024. Sentinel-2C and manoeuvres are left out.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from bigmap.draws import F64, derive_seed, hash_ints, to_uniform
from bigmap.simulate.noise import to_normal

ORBITS = 143
CYCLE = dt.timedelta(days=10)
PERIOD = CYCLE / ORBITS
INCLINATION_DEG = 98.62
HALF_SWATH_KM = 145.0
ALTITUDE_KM = 786.0
EARTH_RADIUS_KM = 6371.0
_NODE_79 = dt.datetime(2023, 8, 15, 9, 20, 40, tzinfo=dt.UTC)
"""Ascending node of Sentinel-2A's relative orbit 79."""
_ABSOLUTE_79 = {"sentinel-2a": 42547, "sentinel-2b": 33710}
_PHASE = {"sentinel-2a": dt.timedelta(0), "sentinel-2b": dt.timedelta(days=5)}


@dataclass(frozen=True)
class Datatake:
    """One pass of one satellite, as seen over any land."""

    platform: str
    """``sentinel-2a`` or ``sentinel-2b``."""
    node: dt.datetime
    """Time of the ascending node, UTC."""
    relative_orbit: int
    """1 to 143."""
    absolute_orbit: int
    seed: int
    """Seed of all that differs between datatakes."""

    @property
    def node_longitude(self) -> float:
        """Longitude of the ascending node in degrees: where local solar time is 22:30."""
        return _node_longitude(self.node)

    def cross_track_km(self, longitude: F64, latitude: F64) -> F64:
        """Return the distance of places to the ground track, positive to the east.

        Good to about 1 % of the swath.

        Parameters
        ----------
        longitude, latitude
            Degrees, any shape.
        """
        track = self.node_longitude + _descend(latitude)
        ahead = self.node_longitude + _descend(latitude + 0.01)
        apart = _turn(longitude - track)
        shrink = np.cos(np.radians(latitude))
        lean = np.arctan((ahead - track) / 0.01 * shrink)
        return np.asarray(np.radians(apart) * EARTH_RADIUS_KM * shrink * np.cos(lean))

    def time_at(self, latitude: float) -> dt.datetime:
        """Return when the satellite crosses a latitude on its descending half, UTC."""
        return self.node + PERIOD * (_argument(np.array(latitude)).item() / 360)

    def shift_m(self, band: str, gsd_m: int) -> tuple[float, float]:
        """Return how far (east, north) the ground of a pixel lies from where it claims to lie.

        A shift of the whole datatake, uniform within half a pixel of 10 m on each axis, and one
        of each band, normal with a tenth of its pixel: the mission asks for 0.3 pixels at 99.7 %
        (Drusch et al. 2012). Registration between dates is better since the global reference
        image (2021) and was worse before; uniform within half a pixel is an assumption.
        """
        bits = hash_ints(self.seed, 1)
        east, north = (float(to_uniform(bits, draw=draw)[0]) for draw in (1, 2))
        normal = to_normal(hash_ints(derive_seed(self.seed, "shift", band), np.arange(2)))
        return (
            10 * east - 5 + 0.1 * gsd_m * float(normal[0]),
            10 * north - 5 + 0.1 * gsd_m * float(normal[1]),
        )

    def locate_sun(self, longitude: F64, latitude: F64) -> tuple[F64, F64]:
        """Return the sun's azimuth and elevation at places, in degrees, when they are seen.

        Spencer's series for the declination and the equation of time (J. W. Spencer 1971,
        Search 2, 172): good to about 0.1 degree, at least 5 degrees of elevation.
        """
        hour = (self.node - _midnight(self.node)).total_seconds() / 3600
        hours = hour + PERIOD.total_seconds() / 3600 * _argument(latitude) / 360
        turn = 2 * np.pi * (self.node.timetuple().tm_yday - 1 + (hours - 12) / 24) / 365
        declination = (
            0.006918 - 0.399912 * np.cos(turn) + 0.070257 * np.sin(turn)
            - 0.006758 * np.cos(2 * turn) + 0.000907 * np.sin(2 * turn)
            - 0.002697 * np.cos(3 * turn) + 0.00148 * np.sin(3 * turn)
        )  # fmt: skip
        equation_min = 229.18 * (
            0.000075 + 0.001868 * np.cos(turn) - 0.032077 * np.sin(turn)
            - 0.014615 * np.cos(2 * turn) - 0.040849 * np.sin(2 * turn)
        )  # fmt: skip
        angle = np.radians(15 * hours + equation_min / 4 + longitude - 180)
        phi = np.radians(latitude)
        sine = np.sin(phi) * np.sin(declination)
        sine = sine + np.cos(phi) * np.cos(declination) * np.cos(angle)
        azimuth = np.arctan2(
            -np.sin(angle), np.tan(declination) * np.cos(phi) - np.sin(phi) * np.cos(angle)
        )
        elevation = np.degrees(np.arcsin(sine))
        return np.degrees(azimuth) % 360, np.maximum(elevation, 5.0)


def list_datatakes(
    seed: int, longitude: F64, latitude: F64, start: dt.date, end: dt.date
) -> list[Datatake]:
    """List the datatakes whose swath touches places, in the order of time.

    Parameters
    ----------
    longitude, latitude
        Places in degrees, any shape; together they should lie within some 100 km.
    start, end
        Days, UTC, both included.
    """
    found: list[Datatake] = []
    first = dt.datetime.combine(start, dt.time(), dt.UTC) - dt.timedelta(hours=2)
    last = dt.datetime.combine(end, dt.time(), dt.UTC) + dt.timedelta(days=1)
    middle = float(np.mean(latitude))
    track, shrink = _trace_track(latitude)
    for platform, phase in _PHASE.items():
        origin = _NODE_79 + phase
        count = -int((origin - first) // PERIOD)
        while (node := origin + CYCLE * count / ORBITS) < last:
            across = _turn(longitude - _node_longitude(node) - track) * shrink
            if np.abs(across).min() < HALF_SWATH_KM:
                datatake = _make_datatake(seed, platform, node, count)
                if start <= datatake.time_at(middle).date() <= end:
                    found.append(datatake)
            count += 1
    return sorted(found, key=lambda datatake: datatake.node)


def _node_longitude(node: dt.datetime) -> float:
    return (22.5 - (node - _midnight(node)).total_seconds() / 3600) * 15.0


def _trace_track(latitude: F64) -> tuple[F64, F64]:
    """Return what :meth:`Datatake.cross_track_km` needs and no datatake changes.

    Returns
    -------
    track, shrink
        Longitude of the ground track relative to its node in degrees, and kilometres across
        the track for each degree of longitude.
    """
    track = _descend(latitude)
    shrink = np.cos(np.radians(latitude))
    lean = np.arctan((_descend(latitude + 0.01) - track) / 0.01 * shrink)
    return track, np.radians(1.0) * EARTH_RADIUS_KM * shrink * np.cos(lean)


def _turn(degrees: F64) -> F64:
    """Bring angles into -180 to 180 degrees."""
    return np.asarray(np.mod(degrees + 180, 360) - 180)


def _make_datatake(seed: int, platform: str, node: dt.datetime, count: int) -> Datatake:
    return Datatake(
        platform=platform,
        node=node,
        relative_orbit=(78 + count) % ORBITS + 1,
        absolute_orbit=_ABSOLUTE_79[platform] + count,
        seed=derive_seed(seed, "datatake", platform, count),
    )


def _argument(latitude: F64) -> F64:
    """Return the angle from the ascending node at which a descending orbit is at a latitude."""
    sine = np.sin(np.radians(latitude)) / np.sin(np.radians(INCLINATION_DEG))
    return np.asarray(180 - np.degrees(np.arcsin(np.clip(sine, -1, 1))))


def _descend(latitude: F64) -> F64:
    """Return the longitude of the ground track relative to its ascending node, in degrees."""
    angle = np.radians(_argument(latitude))
    tilt = np.cos(np.radians(INCLINATION_DEG))
    inertial = np.degrees(np.arctan2(tilt * np.sin(angle), np.cos(angle)))
    turned = 360 * (PERIOD / dt.timedelta(days=1)) * np.degrees(angle) / 360
    return np.asarray(np.mod(inertial, -360) - turned)


def _midnight(moment: dt.datetime) -> dt.datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
