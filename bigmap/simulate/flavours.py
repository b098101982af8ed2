"""The same scenes as different catalogues describe them, quirks included.

``earth-search``
    Earth Search v1, ``sentinel-2-l2a``: the offset of baseline 04.00 has been applied, the flag
    says so, and ``raster:bands`` states it all the same.
``earth-search-c1``
    Its collection 1: the offset stands in ``raster:bands``, has to be applied, and no flag tells.
``planetary-computer``
    No scale, offset or flag: only the baseline tells; asset keys are band numbers.
``cdse``
    Copernicus Data Space: JPEG 2000, most bands at several pixel sizes with the size in the key,
    the CRS on the assets alone and as ``proj:code``, the baseline as ``processing:version``.
    Its hrefs are ``s3://`` ones; here they are paths like all others. Aerosol, water vapour and
    true-colour images are left out.
"""

from __future__ import annotations

import copy
import datetime as dt
from dataclasses import dataclass
from typing import Any

from bigmap.simulate.sensor import MSI

FLAVOURS = ("earth-search", "earth-search-c1", "planetary-computer", "cdse")
OFFSET_START = dt.date(2022, 1, 25)
"""First day of baseline 04.00, whose DN hold 1,000 more (ESA, product format since 2022-01-25)."""
_BASELINES = (
    (dt.date(2024, 7, 23), "05.11"),
    (dt.date(2023, 12, 13), "05.10"),
    (dt.date(2022, 12, 6), "05.09"),
    (OFFSET_START, "04.00"),
    (dt.date(2021, 6, 30), "03.01"),
    (dt.date(2020, 2, 4), "02.14"),
)

_CDSE_SIZES_M = {10: (10, 20, 60), 20: (20, 60), 60: (60,)}
"""Pixel sizes in which bands are delivered, by that of their detector."""
_CDSE_EXCEPTIONS_M = {"coastal": (20, 60), "nir": (10,)}
_SCL_M = 20


@dataclass(frozen=True)
class SceneFile:
    """One file of a scene."""

    band: str
    """Common name, or ``scl``."""
    gsd_m: int
    path: str
    """Relative to the folder of the scene."""


def list_scene_files(bands: tuple[str, ...], flavour: str, day: dt.date) -> list[SceneFile]:
    """List the files of a scene of one day, those of the scene classification last.

    DN that hold the offset have a folder of their own, and so has JPEG 2000.
    """
    files = []
    for band in (*dict.fromkeys(bands), "scl"):
        gsd = native_gsd_m(band)
        if flavour == "cdse":
            sizes = _CDSE_EXCEPTIONS_M.get(band) or _CDSE_SIZES_M[gsd]
            files += [SceneFile(band, size, f"jp2/{_code(band)}_{size}m.jp2") for size in sizes]
        else:
            is_shifted = band != "scl" and has_offset(flavour, day)
            path = f"offset/{name_file(band)}" if is_shifted else name_file(band)
            files.append(SceneFile(band, gsd, path))
    return files


def native_gsd_m(band: str) -> int:
    """Return the pixel size of a band, or of ``scl``, in metres."""
    return _SCL_M if band == "scl" else MSI[band].gsd_m


def name_file(band: str) -> str:
    """Return the name of a band's COG, for example ``B04.tif``."""
    return f"{_code(band)}.tif"


def baseline_of(day: dt.date) -> str:
    """Return the processing baseline that was used on a day, for example ``05.10``."""
    return next((name for start, name in _BASELINES if day >= start), "02.13")


def has_offset(flavour: str, day: dt.date) -> bool:
    """Tell whether the DN of a flavour's files hold 1,000 more than 10,000 x reflectance."""
    return flavour != "earth-search" and day >= OFFSET_START


def restyle_item(item: dict[str, Any], flavour: str, files: dict[SceneFile, str]) -> dict[str, Any]:
    """Describe an Earth Search item as another catalogue would.

    Parameters
    ----------
    item
        From :func:`bigmap.simulate.items.describe_item`; not changed.
    flavour
        One of :data:`FLAVOURS`.
    files
        The files of the item, of :func:`list_scene_files`, and their hrefs.
    """
    item = copy.deepcopy(item)
    known = item["assets"]
    item["assets"] = {file.band: known[file.band] | {"href": files[file]} for file in files}
    if flavour == "earth-search-c1":
        return _restyle_collection_1(item)
    if flavour == "planetary-computer":
        return _restyle_planetary_computer(item)
    return _restyle_cdse(item, files) if flavour == "cdse" else item


def _restyle_collection_1(item: dict[str, Any]) -> dict[str, Any]:
    item["collection"] = "sentinel-2-c1-l2a"
    properties = item["properties"]
    for name in ("earthsearch:boa_offset_applied", "proj:epsg"):
        properties.pop(name, None)
    return item


def _restyle_planetary_computer(item: dict[str, Any]) -> dict[str, Any]:
    properties = item["properties"]
    properties["s2:mgrs_tile"] = properties["grid:code"].removeprefix("MGRS-")
    properties["platform"] = (
        properties["platform"].capitalize()[:-1] + properties["platform"][-1].upper()
    )
    properties["constellation"] = "Sentinel 2"
    for name in (
        "earthsearch:boa_offset_applied", "proj:code", "grid:code", "created", "updated",
        "processing:software", "s2:sequence",
    ):  # fmt: skip
        properties.pop(name, None)
    assets = {}
    for name, asset in item["assets"].items():
        asset.pop("raster:bands", None)
        code = _code(name)
        for band in asset.get("eo:bands", []):
            band["name"] = code
        assets[code] = asset
    item["assets"] = assets
    return item


def _restyle_cdse(item: dict[str, Any], files: dict[SceneFile, str]) -> dict[str, Any]:
    properties = item["properties"]
    code = properties.pop("proj:code")
    properties["processing:version"] = properties.pop("s2:processing_baseline")
    properties["processing:datetime"] = properties.pop("s2:generation_time")
    properties["eopf:datatake_id"] = properties.pop("s2:datatake_id")
    for name in list(properties):
        if name.startswith(("s2:", "mgrs:", "earthsearch:")) or name == "proj:epsg":
            properties.pop(name)
    item["assets"] = {
        f"{_code(file.band)}_{file.gsd_m}m": _describe_jp2(item["assets"][file.band], file, code)
        | {"href": href}
        for file, href in files.items()
    }
    item["stac_version"] = "1.1.0"
    return item


def _describe_jp2(asset: dict[str, Any], file: SceneFile, code: str) -> dict[str, Any]:
    """Describe one of the sizes of a band, from its asset in Earth Search."""
    gsd, native = file.gsd_m, native_gsd_m(file.band)
    radiometry = asset["raster:bands"][0]
    kind = "original" if gsd == native else "downsampled" if gsd > native else "upsampled"
    left, top = asset["proj:transform"][2], asset["proj:transform"][5]
    jp2 = asset | {
        "type": "image/jp2",
        "roles": [*asset["roles"], f"sampling:{kind}", f"gsd:{gsd}m"],
        "title": f"{asset['title'].removesuffix(f' - {native}m')} - {gsd}m",
        "gsd": gsd,
        "nodata": 0,
        "data_type": radiometry["data_type"],
        "proj:code": code,
        "proj:shape": [size * native // gsd for size in asset["proj:shape"]],
        "proj:transform": [gsd, 0, left, 0, -gsd, top],
    }
    del jp2["raster:bands"]
    bands = jp2.pop("eo:bands", [])
    if bands:
        jp2["raster:scale"], jp2["raster:offset"] = radiometry["scale"], radiometry["offset"]
        jp2["bands"] = [
            {
                "name": _code(file.band),
                "eo:common_name": bands[0]["common_name"],
                "eo:center_wavelength": bands[0]["center_wavelength"],
            }
        ]
    return jp2


def _code(name: str) -> str:
    return "SCL" if name == "scl" else MSI[name].code
