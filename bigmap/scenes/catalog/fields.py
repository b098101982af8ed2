"""What an item says of itself: time, names, clouds and geometry."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from bigmap.scenes.catalog.geometries import read_geometry
from bigmap.scenes.catalog.malformed import UnusableItemError
from bigmap.scenes.catalog.projection import turn_into_world

Item = Mapping[str, Any]


def time_of(item: Item) -> dt.datetime:
    """Return an item's time of acquisition, UTC; the start where it has only a range."""
    properties = item["properties"]
    time = parse_time(properties.get("datetime") or properties.get("start_datetime"))
    if time is None:
        raise UnusableItemError("unusable", "its datetime is missing or not a time")
    return time


def id_of(item: Item) -> str:
    """Return an item's id, which goes to terminals and files."""
    name = item.get("id")
    if not isinstance(name, str | int) or not str(name).isprintable():
        raise UnusableItemError("unusable", "its id is not a text that can be printed")
    return str(name)


def collection_of(item: Item) -> str:
    """Return the id of an item's collection; empty where it has none."""
    name = item.get("collection") or ""
    if not isinstance(name, str) or not name.isprintable():
        raise UnusableItemError("unusable", "its collection is not a text that can be printed")
    return name


def cloud_percent_of(item: Item) -> float | None:
    """Return ``eo:cloud_cover``, or None where the item does not tell or says NaN."""
    value = item["properties"].get("eo:cloud_cover")
    if value is None or math.isnan(float(value)):
        return None
    return float(value)


def stated_footprint_of(item: Item) -> BaseGeometry | None:
    """Return the item's geometry in degrees; None where it is missing or wraps the globe.

    A polygon wider than 180 degrees is one that crosses the antimeridian without being split
    there, and would meet every query. One that runs on beyond 180 degrees is split.

    Raises
    ------
    ValueError, shapely.errors.ShapelyError
        If it is no geometry, see :func:`bigmap.scenes.catalog.geometries.read_geometry`.
    """
    if not item.get("geometry"):
        return None
    geometry = shapely.make_valid(read_geometry(item["geometry"]))
    for part in shapely.get_parts(geometry):
        west, _, east, _ = part.bounds
        if not east - west <= 180:
            return None
    west, south, east, north = geometry.bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        geometry = turn_into_world(geometry)
    return None if geometry.is_empty else geometry


def find_in(pattern: re.Pattern[str], text: object) -> str | None:
    """Return what a pattern's first group finds in a text; None where nothing."""
    found = pattern.search(str(text or ""))
    return found[1] if found else None


def first_of(properties: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the first of several properties that an item has."""
    return next((properties[name] for name in names if properties.get(name) is not None), None)


def parse_time(text: object) -> dt.datetime | None:
    """Read an RFC 3339 time as UTC; a time without a zone counts as UTC."""
    if isinstance(text, dt.datetime):
        time = text
    elif not text:
        return None
    else:
        try:
            time = dt.datetime.fromisoformat(str(text))
        except ValueError:
            return None
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)


def sortable_time(text: object) -> str:
    """Return a time as text whose order is that of times; empty where it is none."""
    time = parse_time(text)
    return time.isoformat(timespec="microseconds") if time else ""
