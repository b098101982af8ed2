"""STAC items as Earth Search v1 writes them for ``sentinel-2-l2a``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import shapely
from pyproj import Transformer

from bigmap.simulate.acquisitions import Datatake
from bigmap.simulate.flavours import OFFSET_START, baseline_of, name_file, native_gsd_m
from bigmap.simulate.sensor import MSI
from bigmap.simulate.tiles import Part

COLLECTION = "sentinel-2-l2a"
_EXTENSIONS = (
    "eo/v1.1.0", "grid/v1.0.0", "mgrs/v1.0.0", "processing/v1.1.0", "projection/v1.1.0",
    "raster/v1.1.0", "view/v1.0.0",
)  # fmt: skip
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_TITLES = {
    "coastal": "Coastal aerosol", "blue": "Blue", "green": "Green", "red": "Red",
    "rededge1": "Red edge 1", "rededge2": "Red edge 2", "rededge3": "Red edge 3", "nir": "NIR 1",
    "nir08": "NIR 2", "nir09": "NIR 3", "swir16": "SWIR 1", "swir22": "SWIR 2",
}  # fmt: skip


def name_item(part: Part, datatake: Datatake) -> str:
    """Return the item's id, for example ``S2A_31TDG-0412_20240503_R051_L2A``.

    The orbit is in it because one satellite passes far northern places several times a day.
    """
    day, orbit = f"{datatake.node:%Y%m%d}", f"R{datatake.relative_orbit:03d}"
    return f"{_satellite(datatake)}_{part.name}_{day}_{orbit}_L2A"


def describe_item(
    part: Part,
    datatake: Datatake,
    *,
    sun: tuple[float, float],
    percentages: Mapping[str, float],
    footprint: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Describe one part of one datatake, with all the assets that it could have.

    Parameters
    ----------
    sun
        Azimuth and elevation in degrees.
    percentages
        Shares of the scene classification, in percent, by the names of the ``s2`` fields; none
        where they are not known yet, and then no cloud cover is stated.
    footprint
        Ring of the valid pixels in the part's CRS.

    Returns
    -------
    dict
        A STAC 1.0 item; the hrefs are file names beside the item.
    """
    tile = part.tile
    to_lonlat = Transformer.from_crs(tile.epsg, 4326, always_xy=True)
    outline = shapely.segmentize(shapely.Polygon(footprint), 1000)
    lon, lat = to_lonlat.transform(*shapely.get_coordinates(outline).T)
    ring = [[round(float(a), 7), round(float(b), 7)] for a, b in zip(lon, lat, strict=True)]
    longitudes, latitudes = zip(*ring, strict=True)
    moment = datatake.time_at(sum(latitudes) / len(latitudes))
    made = moment + dt.timedelta(hours=5)
    catalogued = _format(made + dt.timedelta(hours=5))
    baseline = baseline_of(moment.date())
    is_shifted = moment.date() >= OFFSET_START
    properties: dict[str, Any] = {
        "created": catalogued,
        "updated": catalogued,
        "datetime": _format(moment),
        "platform": datatake.platform,
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        **({"eo:cloud_cover": _cloudiness(percentages)} if percentages else {}),
        "proj:epsg": tile.epsg,
        "proj:code": f"EPSG:{tile.epsg}",
        "mgrs:utm_zone": tile.zone,
        "mgrs:latitude_band": tile.name[2],
        "mgrs:grid_square": tile.name[3:],
        "grid:code": f"MGRS-{tile.name}",
        "view:sun_azimuth": sun[0],
        "view:sun_elevation": sun[1],
        **{f"s2:{name}_percentage": value for name, value in percentages.items()},
        "s2:product_type": "S2MSI2A",
        "s2:processing_baseline": baseline,
        "s2:generation_time": _format(made),
        "s2:datatake_id": _name_datatake(datatake, baseline),
        "s2:datatake_type": "INS-NOBS",
        "s2:sequence": "0",
        "sat:relative_orbit": datatake.relative_orbit,
        "earthsearch:boa_offset_applied": is_shifted,
        "processing:software": {"bigmap.simulate": "1"},
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            f"https://stac-extensions.github.io/{name}/schema.json" for name in _EXTENSIONS
        ],
        "id": name_item(part, datatake),
        "collection": COLLECTION,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": properties,
        "links": [],
        "assets": {
            name: _describe_asset(part, name, offset=-0.1 if is_shifted else 0)
            for name in (*MSI, "scl")
        },
    }


def _describe_asset(part: Part, name: str, *, offset: float) -> dict[str, Any]:
    left, bottom, _, top = part.bounds
    gsd = native_gsd_m(name)
    size = round((top - bottom) / gsd)
    asset: dict[str, Any] = {"href": name_file(name), "type": _COG, "roles": ["data"]}
    if name == "scl":
        asset["title"] = "Scene classification map (SCL)"
        radiometry: dict[str, Any] = {"data_type": "uint8"}
    else:
        band = MSI[name]
        asset["title"] = f"{_TITLES[name]} (band {band.code}) - {gsd}m"
        asset["eo:bands"] = [
            {
                "name": name,
                "common_name": name,
                "description": f"{_TITLES[name]} (band {band.code})",
                "center_wavelength": band.wavelength_um,
                "full_width_half_max": band.width_um,
            }
        ]
        asset["roles"] = ["data", "reflectance"]
        # As in the real catalogue, the offset stands here although it has been applied.
        radiometry = {"data_type": "uint16", "bits_per_sample": 15, "scale": 1e-4}
        radiometry["offset"] = offset
    asset["gsd"] = gsd
    asset["proj:shape"] = [size, size]
    asset["proj:transform"] = [gsd, 0, left, 0, -gsd, top]
    asset["raster:bands"] = [{"nodata": 0, "spatial_resolution": gsd, **radiometry}]
    return asset


def _cloudiness(percentages: Mapping[str, float]) -> float:
    names = ("medium_proba_clouds", "high_proba_clouds", "thin_cirrus")
    return round(sum(percentages[name] for name in names), 6)


def _name_datatake(datatake: Datatake, baseline: str) -> str:
    return (
        f"G{_satellite(datatake)}_{datatake.time_at(60):%Y%m%dT%H%M%S}"
        f"_{datatake.absolute_orbit:06d}_N{baseline}"
    )


def _satellite(datatake: Datatake) -> str:
    return "S2" + datatake.platform[-1].upper()


def _format(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
