"""What the parts of a recipe have in common: their base and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict


def check_place(place: str) -> str:
    """Refuse a place that could not be shown."""
    if not place.isprintable():
        raise ValueError(f"{place!r} holds characters that cannot be printed")
    return place


Place = Annotated[str, Field(min_length=1), AfterValidator(check_place)]
"""A path or a URL."""
# Strict, because true, or YAML's yes, would pass for 1.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Positive = Annotated[Whole, Field(gt=0, le=65536)]
Metres = Annotated[Number, Field(ge=-1e8, le=1e8)]
BandResampling = Literal["bilinear", "cubic", "nearest"]


class Part(BaseModel):
    """A frozen section of a recipe that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
