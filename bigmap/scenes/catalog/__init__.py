"""Catalogues of scenes: STAC items in, slim rows and an audit out.

The only importer of pystac-client. Nothing here reads pixels.
"""

from bigmap.scenes.catalog.audit import Audit, Catalogue, Finding
from bigmap.scenes.catalog.search import find_items
from bigmap.scenes.catalog.storage import is_saved_catalogue, load_items, save_items

__all__ = [
    "Audit",
    "Catalogue",
    "Finding",
    "find_items",
    "is_saved_catalogue",
    "load_items",
    "save_items",
]
