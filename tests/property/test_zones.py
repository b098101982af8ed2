"""UTM zones of an area: every place and every pixel lies in exactly one, also at 180 degrees."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from bigmap.area import list_utm_zones, read_area
from bigmap.errors import EmptyAreaError, RecipeError
from bigmap.grid import Lattice, area_mask
from bigmap.zones import UtmZone

EDGE_DEG = 1e-3
"""Edges of a box are straight between vertices 0.05 degrees apart; places stay clear of them."""


@st.composite
def boxes(draw):
    west = draw(st.one_of(st.floats(-180, 179.9), st.floats(168, 179.9)))
    south = draw(st.one_of(st.floats(-79, 80), st.floats(-3, -0.1)))
    width, height = draw(st.floats(0.05, 14)), draw(st.floats(0.05, 3))
    east = (west + width + 180) % 360 - 180
    return [round(value, 3) for value in (west, south, east, south + height)]


def areas_of(**area):
    found = {}
    for zone in list_utm_zones(**area):
        try:
            found[zone.name] = zone, read_area(crs=zone.crs, zone=zone, **area)
        except EmptyAreaError:
            continue
    return found


def places_in(box, count, rng):
    west, south, east, north = box
    lon = rng.uniform(west + EDGE_DEG, (east if east > west else east + 360) - EDGE_DEG, count)
    lat = rng.uniform(south + EDGE_DEG, north - EDGE_DEG, count)
    return (lon + 180) % 360 - 180, lat


def zone_of(lon, lat):
    return f"{int((lon + 180) // 6) + 1:02d}{'n' if lat >= 0 else 's'}"


@settings(max_examples=25, deadline=None)
@given(boxes(), st.integers(0, 1000))
@example([179.5, -0.5, -179.5, 0.5], 0)
@example([-0.7, -1.0, 12.2, 1.0], 1)
def test_each_place_lies_in_the_one_zone_of_its_longitude(box, seed):
    areas = areas_of(bbox=box)
    lon, lat = places_in(box, 50, np.random.default_rng(seed))
    holders = [set() for _ in lon]
    for zone, area in areas.values():
        project = Transformer.from_crs("EPSG:4326", zone.crs, always_xy=True).transform
        points = shapely.points(*project(lon, lat))
        inside = np.all([shapely.contains(part, points) for part in area.parts], axis=0)
        for index in np.flatnonzero(inside):
            holders[index].add(zone.name)
    assert holders == [{zone_of(*place)} for place in zip(lon, lat, strict=True)]


@settings(max_examples=10, deadline=None)
@given(boxes().filter(lambda box: (box[2] - box[0]) % 360 < 8))
@example([179.6, -0.4, -179.6, 0.4])
@example([5.7, 59.9, 6.3, 60.2])
def test_pixels_of_a_zone_are_all_that_have_their_centre_in_it(box):
    for zone, area in areas_of(bbox=box).values():
        lattice = Lattice(zone.crs, 1000, 16, 16, 16, 1, 16, 16)
        roi = lattice.snap(area.bounds, 16)
        mask = area_mask(area, lattice, roi)
        xs, ys = lattice.geobox(roi).coordinates["x"].values, lattice.geobox(roi).coordinates["y"]
        to_lonlat = Transformer.from_crs(lattice.crs, "EPSG:4326", always_xy=True).transform
        lon, lat = to_lonlat(*np.meshgrid(xs, ys.values))
        # 1e-7 degrees are a centimetre.
        from_west = (lon - zone.west_deg + 180) % 360 - 180
        own = (from_west >= -1e-7) & (from_west <= 6 + 1e-7)
        own &= lat >= -1e-7 if zone.is_north else lat <= 1e-7
        assert own[mask].all()
        width = (box[2] - box[0]) % 360
        from_box = (lon - box[0] + 180) % 360 - 180
        in_box = (from_box > EDGE_DEG) & (from_box < width - EDGE_DEG)
        in_box &= (lat > box[1] + EDGE_DEG) & (lat < box[3] - EDGE_DEG)
        clear = (from_west > 1e-7) & (from_west < 6 - 1e-7) & (np.abs(lat) > 1e-7) & own
        assert mask[in_box & clear].all()


def test_a_continent_is_cut_before_it_is_projected(tmp_path):
    """As one area, this one is far too wide for any of its zones."""
    ring = [[-20, 40], [60, 40], [60, 60], [-20, 60], [-20, 40]]
    file = tmp_path / "wide.geojson"
    file.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    with pytest.raises(RecipeError, match="not made"):
        read_area(crs="EPSG:32631", file=str(file))
    zones = list_utm_zones(file=str(file))
    assert [zone.name for zone in zones] == [f"{zone:02d}n" for zone in range(27, 41)]
    area = read_area(crs="EPSG:32631", zone=UtmZone(31, is_north=True), file=str(file))
    # 6 degrees by 20: R^2 * 6 degrees * (sin 60 - sin 40), the Earth somewhat flattened.
    assert area.area_km2 == pytest.approx(948_800, rel=3e-3)


def test_a_buffer_reaches_into_the_next_zone():
    areas = areas_of(bbox=[5.5, 45.0, 5.99, 45.1], buffer_m=3000)
    assert set(areas) == {"31n", "32n"}
    assert areas["32n"][1].area_km2 == pytest.approx(2.2 * 15, rel=0.15)


def test_beyond_utm_is_refused():
    with pytest.raises(RecipeError, match="UTM ends at -80 and 84"):
        list_utm_zones(bbox=[10, 83, 20, 85])


def test_the_antimeridian_in_one_crs():
    area = read_area(crs="EPSG:3832", bbox=[178, -18, -178, -16])
    left, bottom, right, top = area.bounds
    # Mercator around 150 degrees east: 4 degrees wide, not 356.
    assert right - left == pytest.approx(4 * 111_319.49, rel=1e-4)
    assert shapely.union_all(list(area.parts)).geom_type == "Polygon"
    assert top > bottom
