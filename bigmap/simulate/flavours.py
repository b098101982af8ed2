"""The same scenes as different catalogues describe them, quirks included.

``earth-search``
    Earth Search v1, ``sentinel-2-l2a``: the offset of baseline 04.00 has been applied, the flag
    says so, and ``raster:bands`` states it all the same.
``earth-search-c1``
    Its collection 1: the offset stands in ``raster:bands``, has to be applied, and no flag tells.
``planetary-computer``
    No scale, offset or flag: only the baseline tells; asset keys are band numbers.
``cdse``
    Copernicus Data Space: the CRS on the assets alone and as ``proj:code``, the baseline as
    ``processing:version`` and the pixel size in the keys.
"""

from __future__ import annotations

import copy
import datetime as dt
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


def baseline_of(day: dt.date) -> str:
    """Return the processing baseline that was used on a day, for example ``05.10``."""
    return next((name for start, name in _BASELINES if day >= start), "02.13")


def has_offset(flavour: str, day: dt.date) -> bool:
    """Tell whether the DN of a flavour's files hold 1,000 more than 10,000 x reflectance."""
    return flavour != "earth-search" and day >= OFFSET_START


def restyle_item(item: dict[str, Any], flavour: str) -> dict[str, Any]:
    """Describe an Earth Search item as another catalogue would.

    Parameters
    ----------
    item
        From :func:`bigmap.simulate.items.describe_item`; not changed.
    flavour
        One of :data:`FLAVOURS`.
    """
    item = copy.deepcopy(item)
    if flavour == "earth-search-c1":
        return _restyle_collection_1(item)
    if flavour == "planetary-computer":
        return _restyle_planetary_computer(item)
    return _restyle_cdse(item) if flavour == "cdse" else item


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


def _restyle_cdse(item: dict[str, Any]) -> dict[str, Any]:
    properties = item["properties"]
    code = properties.pop("proj:code")
    properties["processing:version"] = properties.pop("s2:processing_baseline")
    properties["processing:datetime"] = properties.pop("s2:generation_time")
    properties["eopf:datatake_id"] = properties.pop("s2:datatake_id")
    for name in list(properties):
        if name.startswith(("s2:", "mgrs:", "earthsearch:")) or name == "proj:epsg":
            properties.pop(name)
    assets = {}
    for name, asset in item["assets"].items():
        asset["proj:code"] = code
        asset.pop("raster:bands", None)
        bands = asset.pop("eo:bands", [])
        if bands:
            asset["bands"] = [
                {
                    "name": _code(name),
                    "eo:common_name": bands[0]["common_name"],
                    "eo:center_wavelength": bands[0]["center_wavelength"],
                }
            ]
        assets[f"{_code(name)}_{asset['gsd']}m"] = asset
    item["assets"] = assets
    item["stac_version"] = "1.1.0"
    return item


def _code(name: str) -> str:
    return "SCL" if name == "scl" else MSI[name].code
