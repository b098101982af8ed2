"""Which asset of an item holds which band, in whatever way its catalogue names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigmap.scenes.catalog.malformed import UnusableItemError
from bigmap.scenes.items import BANDS

Asset = Mapping[str, Any]

NUMBERS = ("01", "02", "03", "04", "05", "06", "07", "08", "8A", "09", "10", "11", "12")
_BAND_OF_NUMBER = dict(zip(NUMBERS, BANDS, strict=True))
_CENTRES_NM = dict(zip(
    BANDS, (443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1375, 1610, 2190), strict=True
))  # fmt: skip
_RED_EDGE_NM = {_CENTRES_NM[name]: name for name in ("rededge1", "rededge2", "rededge3", "nir08")}
_CENTRE_TOLERANCE_NM = 40
_RED_EDGE = frozenset(("rededge", "rededge1", "rededge2", "rededge3"))
_NEAR_INFRARED = frozenset(("nir", "nir08", "nir09"))
_COMMON_NAMES = {*BANDS, *_RED_EDGE, "green05", "yellow", "pan", "lwir", "lwir11", "lwir12"}
"""Those of STAC's electro-optical extension; catalogues' own words contradict nothing."""
_RED_EDGE_NAMES = {"rededge071": "rededge1", "rededge075": "rededge2", "rededge078": "rededge3"}
_SUFFIX = re.compile(r"(?:[-_]jp2)?(?:[-_](\d+)m)?(?:[-_]jp2)?$", re.IGNORECASE)
_NUMBER = re.compile(r"^B(?:and)?[ _]?0?(\d{1,2}|8A)$", re.IGNORECASE)
_NUMBER_IN_TITLE = re.compile(r"\bB(?:and ?)?0?(\d{1,2}|8A)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Choice:
    """The asset that was chosen for a band or a mask."""

    key: str
    asset: Asset
    is_jp2: bool


def choose_assets(
    assets: Mapping[str, Asset], *, bands: tuple[str, ...], mask_asset: str | None
) -> dict[str, Choice]:
    """Choose one asset for each band and for the mask.

    Among several a GeoTIFF wins over its JPEG 2000 twin, then the finest pixels, then the
    shortest key.

    Parameters
    ----------
    assets
        ``assets`` of a STAC item.
    bands
        Wanted bands, of :data:`bigmap.scenes.items.BANDS`.
    mask_asset
        Name of the mask asset, in any case and with any ``_20m`` or ``-jp2`` behind it.

    Returns
    -------
    dict
        By band, in their order, then by ``mask_asset``; what the item lacks is missing.

    Raises
    ------
    UnusableItemError
        If an asset, wanted or not, is named as one band and described as another: its item is
        of another sensor, which numbers its bands otherwise.
    """
    offered: dict[str, list[Choice]] = {}
    for key, asset in assets.items():
        if not _is_raster(asset):
            continue
        choice = Choice(key, asset, _is_jp2(asset))
        band = band_of(key, asset)
        if band is not None and (described := _contradict(band, asset)):
            detail = f"asset {key} is {band} by its name, but described as {described}"
            raise UnusableItemError("unusable", detail)
        if mask_asset is not None and _is_named(key, mask_asset):
            offered.setdefault(mask_asset, []).append(choice)
        elif band is not None and band in bands:
            offered.setdefault(band, []).append(choice)
    names = (*bands, mask_asset) if mask_asset is not None else bands
    return {name: min(offered[name], key=_rank) for name in names if name in offered}


def band_of(key: str, asset: Asset) -> str | None:
    """Return the band that an asset holds, or None.

    The key decides where it is a band number or a band's name; then the name, the common name
    and the wavelength of its only entry in ``eo:bands`` or ``bands`` (STAC 1.1); then its
    title. The common name comes late because catalogues give ``rededge`` to four bands.
    """
    declared = asset.get("eo:bands") or asset.get("bands") or []
    if len(declared) > 1:
        return None
    band = _band_named(_SUFFIX.sub("", key))
    if band is None and declared:
        band = _declared_band(declared[0])
    if band is None and (found := _NUMBER_IN_TITLE.search(str(asset.get("title") or ""))):
        band = _band_numbered(found[1])
    return band


def pixel_size_of(key: str, asset: Asset) -> float:
    """Return an asset's pixel size in metres; infinite where nothing tells.

    The transform is believed first: some catalogues say ``gsd`` 20 of 60 m files.
    """
    transform = asset.get("proj:transform")
    if transform:
        return abs(float(transform[0]))
    for band in (asset, *(asset.get("raster:bands") or ())):
        for name in ("raster:spatial_resolution", "spatial_resolution"):
            if band.get(name):
                return float(band[name])
    suffix = _SUFFIX.search(key)
    if suffix and suffix[1]:
        return float(suffix[1])
    return float(asset.get("gsd") or "inf")


def scaling_of(asset: Asset) -> tuple[float | None, float | None]:
    """Return scale and offset of ``raster:bands``, or of STAC 1.1; None where not given."""
    band: Asset = next(iter(asset.get("raster:bands") or ()), {})
    nested: Asset = next(iter(asset.get("bands") or ()), {})
    scale, offset = (
        next(
            (float(part[name]) for part, name in places if part.get(name) is not None),
            None,
        )
        for places in (
            [(band, wanted), (asset, f"raster:{wanted}"), (nested, f"raster:{wanted}")]
            for wanted in ("scale", "offset")
        )
    )
    return scale, offset


def _band_named(name: str) -> str | None:
    lower = name.lower()
    if lower in BANDS:
        return lower
    number = _NUMBER.match(name)
    return _band_numbered(number[1]) if number else _RED_EDGE_NAMES.get(lower)


def _band_numbered(number: str) -> str | None:
    return _BAND_OF_NUMBER.get(number.upper().zfill(2))


def _declared_band(declared: Asset) -> str | None:
    common = str(declared.get("common_name") or declared.get("eo:common_name") or "")
    for name in (str(declared.get("name") or ""), common):
        if band := _band_named(name):
            return band
    wavelength = declared.get("center_wavelength") or declared.get("eo:center_wavelength")
    if common.lower() == "rededge" and wavelength:
        nanometres = float(wavelength) * 1000
        nearest = min(_RED_EDGE_NM, key=lambda centre: abs(centre - nanometres))
        return _RED_EDGE_NM[nearest]
    return None


def _contradict(band: str, asset: Asset) -> str | None:
    """Return the common name or wavelength of an asset that cannot be that of a band."""
    for declared in asset.get("eo:bands") or asset.get("bands") or ():
        common = str(declared.get("common_name") or declared.get("eo:common_name") or "").lower()
        common = _RED_EDGE_NAMES.get(common, common)
        if common in _COMMON_NAMES and common not in _names_of(band):
            return common
        centre_um = declared.get("center_wavelength") or declared.get("eo:center_wavelength") or 0
        off_nm = abs(1000 * float(centre_um) - _CENTRES_NM[band])
        if 0.3 < float(centre_um) < 3 and off_nm > _CENTRE_TOLERANCE_NM:
            return f"{centre_um} µm"
    return None


def _names_of(band: str) -> frozenset[str]:
    """Return the common names under which catalogues give a band."""
    if band in _NEAR_INFRARED:
        return _NEAR_INFRARED | {"rededge"} if band == "nir08" else _NEAR_INFRARED
    return frozenset((band, "rededge")) if band in _RED_EDGE else frozenset((band,))


def _is_named(key: str, name: str) -> bool:
    return key.lower() == name.lower() or _SUFFIX.sub("", key).lower() == name.lower()


def _is_raster(asset: Asset) -> bool:
    if {"thumbnail", "overview", "metadata"} & set(asset.get("roles") or ()):
        return False
    kind = str(asset.get("type") or "").lower()
    if kind and "octet-stream" not in kind:
        return "tiff" in kind or "jp2" in kind
    return _path_of(asset).endswith((".tif", ".tiff", ".jp2"))


def _is_jp2(asset: Asset) -> bool:
    return "jp2" in str(asset.get("type") or "").lower() or _path_of(asset).endswith(".jp2")


def _path_of(asset: Asset) -> str:
    return str(asset.get("href") or "").split("?")[0].lower()


def _rank(choice: Choice) -> tuple[object, ...]:
    size = pixel_size_of(choice.key, choice.asset)
    return choice.is_jp2, size, len(choice.key), choice.key
