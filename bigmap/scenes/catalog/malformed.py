"""How a malformed item or catalogue shows itself."""

from __future__ import annotations

import pyarrow as pa
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from bigmap.scenes.catalog.audit import Kind

MALFORMED: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    ProjError,
    ShapelyError,
    pa.ArrowException,
)
"""What values of the wrong kind raise, such as a text in place of a number, a list in place of an
object, a number beyond floats, a year beyond 9999, or objects nested a thousand deep."""


class UnusableItemError(Exception):
    """An item cannot be used; caught where items are added, and turned into a finding."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
