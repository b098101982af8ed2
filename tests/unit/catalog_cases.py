"""What the tests of the catalogue share: searches of files, and changed copies of real items."""

import copy
import json

import shapely
import yaml

from bigmap.catalog import find_items
from bigmap.config.sources import FilesSource

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
