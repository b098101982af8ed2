"""Write recipes/europe.geojson from the npm package ``world-atlas``.

Fetch and unpack the package first, then name its file of countries at 1:50 million::

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    python scripts/make_europe_outline.py package/countries-50m.json

The package is TopoJSON made from Natural Earth, which is in the public domain. Europe has no
border in the east that all agree on; here it is the crest of the Urals and the river Ural for
Russia and Kazakhstan, and the straits for Türkiye. Islands far out in the Atlantic are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import shapely
from make_catalonia_outline import decode_arcs, join
from pyproj import Transformer
from shapely.geometry import MultiPolygon, Polygon, mapping
from shapely.geometry.base import BaseGeometry

COUNTRIES = frozenset(
    {
        "Albania", "Andorra", "Austria", "Belarus", "Belgium", "Bosnia and Herz.", "Bulgaria",
        "Croatia", "Cyprus", "Czechia", "Denmark", "Estonia", "Faeroe Is.", "Finland", "France",
        "Germany", "Greece", "Guernsey", "Hungary", "Iceland", "Ireland", "Isle of Man", "Italy",
        "Jersey", "Kazakhstan", "Kosovo", "Latvia", "Liechtenstein", "Lithuania", "Luxembourg",
        "Macedonia", "Malta", "Moldova", "Monaco", "Montenegro", "N. Cyprus", "Netherlands",
        "Norway", "Poland", "Portugal", "Romania", "Russia", "San Marino", "Serbia", "Slovakia",
        "Slovenia", "Spain", "Sweden", "Switzerland", "Turkey", "Ukraine", "United Kingdom",
        "Vatican", "Åland",
    }
)  # fmt: skip
URALS = (
    (72.0, 84.0), (72.0, 76.0), (66.0, 73.0), (65.0, 70.5), (64.9, 69.15), (66.0, 68.4),
    (66.0, 67.8), (64.0, 66.0), (60.5, 65.0), (59.3, 62.0), (59.0, 58.0), (59.9, 55.5),
    (58.5, 53.0), (58.6, 51.2), (55.1, 51.8), (51.4, 51.2), (51.9, 47.0), (51.0, 44.0),
    (49.0, 34.0),
)  # fmt: skip
"""The eastern border, from north to south: longitude and latitude of a few places on it."""
WEST = ((-25.0, 34.0), (-25.0, 84.0))
STRAITS = ((25.0, 43.0), (25.0, 39.9), (26.15, 40.05), (26.7, 40.4), (27.5, 40.75), (28.9, 40.9),
           (29.05, 41.05), (29.13, 41.25), (29.2, 43.0))  # fmt: skip
"""West of the Dardanelles and the Bosporus."""
AREA_KM2 = 10_100_000
AREA_TOLERANCE_KM2 = 200_000
SIMPLIFY_M = 1500.0
LEAST_KM2 = 25.0
"""Islands and lakes below it are left out."""
MOST_BYTES = 200_000
PROPERTIES = {
    "name": "Europe",
    "source": "Natural Earth 1:50m countries, through world-atlas 2.0.2; clipped and simplified",
    "licence": "Public domain",
}


def main() -> None:
    """Read the TopoJSON named on the command line and write the outline."""
    parser = argparse.ArgumentParser(description="Write the outline of Europe.")
    parser.add_argument("topojson", type=Path)
    parser.add_argument("--out", type=Path, default=Path("recipes/europe.geojson"))
    options = parser.parse_args()
    topology = json.loads(options.topojson.read_text(encoding="utf-8"))
    write_feature(simplify(read_europe(topology)), options.out)


def read_europe(topology: dict[str, Any]) -> BaseGeometry:
    """Return the countries, each west of its border, in longitude and latitude."""
    arcs = decode_arcs(topology)
    europe = Polygon([*URALS, WEST[0], WEST[1]])
    thrace = Polygon(STRAITS)
    parts = []
    for country in topology["objects"]["countries"]["geometries"]:
        name = country["properties"]["name"]
        if name not in COUNTRIES:
            continue
        polygons = country["arcs"] if country["type"] == "MultiPolygon" else [country["arcs"]]
        shape = MultiPolygon([make_polygon(join(arcs, rings)) for rings in polygons])
        shape = shapely.make_valid(shape, method="structure", keep_collapsed=False)
        parts.append(shape.intersection(thrace if name == "Turkey" else europe))
    return shapely.union_all(parts)


def make_polygon(rings: list[list[tuple[float, float]]]) -> Polygon:
    """Join rings to a polygon, counted from 0 to 360 where it crosses the antimeridian."""
    shell = rings[0]
    if max(x for x, _ in shell) - min(x for x, _ in shell) > 180:
        rings = [[(x % 360, y) for x, y in ring] for ring in rings]
    return Polygon(rings[0], rings[1:])


def simplify(region: BaseGeometry) -> BaseGeometry:
    """Simplify in metres, round in degrees, and check that it is still Europe."""
    metres = Transformer.from_crs("EPSG:4326", "EPSG:3035", always_xy=True).transform
    degrees = Transformer.from_crs("EPSG:3035", "EPSG:4326", always_xy=True).transform
    flat = shapely.transform(region, metres, interleaved=False)
    flat = shapely.make_valid(flat, method="structure", keep_collapsed=False)
    flat = flat.simplify(SIMPLIFY_M)
    parts = [drop_small_holes(part) for part in shapely.get_parts(flat) if is_large(part)]
    simple = shapely.transform(shapely.union_all(parts), degrees, interleaved=False)
    simple = shapely.make_valid(simple, method="structure", keep_collapsed=False)
    outline = shapely.set_precision(simple, 1e-3)
    area_km2 = shapely.transform(outline, metres, interleaved=False).area / 1e6
    if not outline.is_valid or abs(area_km2 - AREA_KM2) > AREA_TOLERANCE_KM2:
        raise ValueError(f"{area_km2:.0f} km2, valid: {outline.is_valid}: not Europe's outline")
    print(f"{area_km2:,.0f} km2, {shapely.get_num_coordinates(outline)} vertices")
    return outline


def is_large(part: BaseGeometry) -> bool:
    """Tell whether a part is a polygon of some size."""
    return part.geom_type == "Polygon" and part.area >= LEAST_KM2 * 1e6


def drop_small_holes(part: Polygon) -> Polygon:
    """Return a polygon without its small holes."""
    return Polygon(part.exterior, [hole for hole in part.interiors if is_large(Polygon(hole))])


def write_feature(outline: BaseGeometry, path: Path) -> None:
    """Write one GeoJSON feature with three decimals, about 100 m."""
    geometry = json.loads(json.dumps(mapping(outline)), parse_float=lambda x: round(float(x), 3))
    feature = {"type": "Feature", "properties": PROPERTIES, "geometry": geometry}
    text = json.dumps(feature, ensure_ascii=False, separators=(",", ":")) + "\n"
    if len(text) > MOST_BYTES:
        raise ValueError(f"{len(text)} bytes are too many; raise SIMPLIFY_M")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
