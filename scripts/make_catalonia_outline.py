"""Write recipes/catalonia.geojson from the npm package ``es-atlas``.

Fetch and unpack the package first, then name its finest file::

    npm pack es-atlas@0.6.0 && tar xzf es-atlas-0.6.0.tgz
    python scripts/make_catalonia_outline.py package/es/municipalities.json

The package is TopoJSON made from the boundaries of Spain's Instituto Geográfico Nacional. Its
coordinates stand on a lattice of about 190 x 180 m, which is the accuracy of the outline.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import shapely
from pyproj import Transformer
from shapely.geometry import MultiPolygon, Polygon, mapping
from shapely.geometry.base import BaseGeometry

CATALONIA = "09"
"""Code of the autonomous community in the register of Spain's statistics institute."""
AREA_KM2 = 32_000
AREA_TOLERANCE_KM2 = 300
SIMPLIFY_M = 60.0
GRID_DEG = 1e-5
PROPERTIES = {
    "name": "Catalunya",
    "source": "Instituto Geográfico Nacional de España, through es-atlas 0.6.0 (MIT); simplified",
    "licence": "CC BY 4.0, © Instituto Geográfico Nacional de España",
}

Ring = list[tuple[float, float]]


def main() -> None:
    """Read the TopoJSON named on the command line and write the outline."""
    parser = argparse.ArgumentParser(description="Write the outline of Catalonia.")
    parser.add_argument("topojson", type=Path)
    parser.add_argument("--out", type=Path, default=Path("recipes/catalonia.geojson"))
    options = parser.parse_args()
    topology = json.loads(options.topojson.read_text(encoding="utf-8"))
    outline = simplify(read_region(topology, CATALONIA))
    write_feature(outline, options.out)


def read_region(topology: dict[str, Any], code: str) -> MultiPolygon:
    """Return one autonomous community, in longitude and latitude."""
    arcs = decode_arcs(topology)
    regions = topology["objects"]["autonomous_regions"]["geometries"]
    (region,) = (each for each in regions if each["id"] == code)
    polygons = region["arcs"] if region["type"] == "MultiPolygon" else [region["arcs"]]
    return MultiPolygon(
        [Polygon(rings[0], rings[1:]) for rings in (join(arcs, part) for part in polygons)]
    )


def decode_arcs(topology: dict[str, Any]) -> list[Ring]:
    """Turn the delta-encoded, quantised arcs of a topology into coordinates."""
    (scale_x, scale_y), (left, bottom) = (
        topology["transform"][key] for key in ("scale", "translate")
    )
    arcs = []
    for deltas in topology["arcs"]:
        x = y = 0
        arc = []
        for dx, dy in deltas:
            x, y = x + dx, y + dy
            arc.append((x * scale_x + left, y * scale_y + bottom))
        arcs.append(arc)
    return arcs


def join(arcs: list[Ring], rings: list[list[int]]) -> list[Ring]:
    """Join arcs to rings; a negative index ``~i`` is arc ``i`` walked backwards."""
    joined = []
    for ring in rings:
        points: Ring = []
        for index in ring:
            arc = arcs[index] if index >= 0 else arcs[~index][::-1]
            points += arc[1:] if points else arc
        joined.append(points)
    return joined


def simplify(region: MultiPolygon) -> BaseGeometry:
    """Simplify in metres, round in degrees, and check that it is still Catalonia."""
    metres = Transformer.from_crs("EPSG:4326", "EPSG:25831", always_xy=True).transform
    degrees = Transformer.from_crs("EPSG:25831", "EPSG:4326", always_xy=True).transform
    flat = shapely.transform(region, metres, interleaved=False)
    # Quantised borders touch themselves; what has no area in them is not wanted.
    flat = shapely.make_valid(flat, method="structure", keep_collapsed=False)
    simple = shapely.transform(flat.simplify(SIMPLIFY_M), degrees, interleaved=False)
    outline = shapely.set_precision(simple, GRID_DEG)
    area_km2 = shapely.transform(outline, metres, interleaved=False).area / 1e6
    if not outline.is_valid or abs(area_km2 - AREA_KM2) > AREA_TOLERANCE_KM2:
        raise ValueError(f"{area_km2:.0f} km2, valid: {outline.is_valid}: not Catalonia's outline")
    print(f"{area_km2:.0f} km2, {shapely.get_num_coordinates(outline)} vertices")
    return outline


def write_feature(outline: BaseGeometry, path: Path) -> None:
    """Write one GeoJSON feature with five decimals."""
    geometry = json.loads(json.dumps(mapping(outline)), parse_float=lambda x: round(float(x), 5))
    feature = {"type": "Feature", "properties": PROPERTIES, "geometry": geometry}
    path.write_text(json.dumps(feature, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
