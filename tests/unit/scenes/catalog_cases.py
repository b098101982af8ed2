"""What the tests of the catalogue share: searches of files, and changed copies of real items."""

import copy
import datetime as dt
import json

import shapely
import yaml

from bigmap.config.sources import FilesSource
from bigmap.scenes.catalog import find_items
from bigmap.scenes.catalog.products import DECIDED_SHIFT
from bigmap.scenes.catalog.projection import footprint_of
from bigmap.scenes.catalog.sources import without_nulls
from bigmap.scenes.catalog.storage import _EXTENSIONS, _clean_row
from bigmap.scenes.items import pack_assets

WORLD = shapely.box(-180, -90, 180, 90)
EVER = {"start": "2014-01-01", "end": "2030-12-31"}


def find(*files, bands=("red",), mask_asset="scl", area=WORLD, **settings):
    source = FilesSource(kind="files", files=tuple(map(str, files)), **{**EVER, **settings})
    return find_items(source, bands=bands, mask_asset=mask_asset, geometry_lonlat=area)


def write(path, *items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    return path


def read_json(path):
    return json.loads(path.read_text())


def read_cassette(path):
    """Return the items of all answers that a VCR cassette holds."""
    calls = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["interactions"]
    answers = [json.loads(call["response"]["body"]["string"]) for call in calls]
    return [item for answer in answers for item in answer.get("features", [])]


def reprocess(item, name, **properties):
    """Return a copy of an item with another id and other properties."""
    twin = copy.deepcopy(item)
    twin["id"] = name
    twin["properties"].update({key.replace("__", ":"): v for key, v in properties.items()})
    return twin


def kinds(catalogue):
    return sorted((finding.kind, finding.item) for finding in catalogue.audit.findings)


def to_item(row):
    """Return a row as a STAC item of version 1.1, key by key: what stored columns must equal."""
    row = _clean_row(row)
    folder, stem, layout = pack_assets(row)
    footprint = footprint_of(row.bounds, row.epsg)
    properties = {
        "datetime": format_time(row.datetime),
        "proj:code": f"EPSG:{row.epsg}",
        "proj:bbox": list(row.bounds),
        DECIDED_SHIFT: row.dn_shift,
        "bigmap:solar_day": row.solar_day.isoformat(),
        "eo:cloud_cover": row.cloud_percent,
        "s2:processing_baseline": row.baseline,
        "grid:code": f"MGRS-{row.mgrs_tile}" if row.mgrs_tile else None,
        "bigmap:folder": folder,
        "bigmap:stem": stem,
        "bigmap:layout": layout,
    }
    # An item that names its collection must link to it, wherever that may be (STAC 1.1, item).
    membership = {"links": []}
    if row.collection:
        link = {"rel": "collection", "href": f"./{row.collection}.json"}
        membership = {"collection": row.collection, "links": [link]}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": row.id,
        **membership,
        "geometry": shapely.geometry.mapping(footprint),
        "bbox": list(footprint.bounds),
        "properties": without_nulls(properties),
        "assets": {
            name: {
                "href": asset.href,
                "proj:shape": list(asset.shape),
                "proj:transform": list(asset.transform),
                "roles": ["data"],
            }
            for name, asset in row.assets.items()
        },
    }


def format_time(time):
    return time.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
