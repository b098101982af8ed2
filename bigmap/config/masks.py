"""Which pixels are clear: the kinds of mask that products have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, model_validator

from bigmap.config.parts import Part, Whole

Dilation = Annotated[
    Whole, Field(ge=0, le=64, description="Grow what is not clear, in input pixels.")
]
Nodata = Annotated[
    Whole | None, Field(description="Value without data, beside what the files declare.")
]


class SclMask(Part):
    """Sen2Cor's scene classification; pixels of the listed classes are clear."""

    kind: Literal["scl"] = "scl"
    asset: str = "scl"
    clear_values: tuple[Whole, ...] = Field(
        (2, 4, 5, 6, 7, 11),
        min_length=1,
        description="SCL classes that count as clear; 0 and 1 never should.",
    )
    dilate_px: Dilation = 0


class BinaryMask(Part):
    """A mask band with one value for clear pixels, such as Sentinel Hub's ``clm``."""

    kind: Literal["binary"]
    asset: str
    clear_value: Whole = Field(0, ge=0, le=65535)
    nodata: Whole | None = Field(
        255,
        description="Value without data, beside what the files declare; null where there is none.",
    )
    dilate_px: Dilation = 0

    @model_validator(mode="after")
    def _check(self) -> BinaryMask:
        if self.clear_value == self.nodata:
            raise ValueError(f"clear_value is nodata ({self.nodata}); set nodata: null")
        return self


class ProbabilityMask(Part):
    """A cloud probability; pixels up to the limit are clear."""

    kind: Literal["probability"]
    asset: str
    max_percent: Whole = Field(40, ge=0, le=100)
    max_value: Whole | None = Field(
        None,
        ge=1,
        le=65535,
        description="Value of the files that means 100 %: 255 for Sentinel Hub's clp, 1 for shares "
        "in floats; by default 100, in whole numbers.",
    )
    nodata: Nodata = None
    dilate_px: Dilation = 0


class BitsMask(Part):
    """A mask band whose bits each mean something, such as HLS's ``Fmask`` or ``qa60``."""

    kind: Literal["bits"]
    asset: str
    bits: tuple[Annotated[Whole, Field(ge=0, le=31)], ...] = Field(
        min_length=1,
        description="Bits that are 0 in a clear pixel, the lowest being 0: 1, 2 and 3 of HLS's "
        "Fmask, 10 and 11 of qa60.",
    )
    nodata: Nodata = None
    dilate_px: Dilation = 0


class NoMask(Part):
    """No mask: every pixel with data is clear."""

    kind: Literal["none"]


MaskConfig = Annotated[
    SclMask | BinaryMask | ProbabilityMask | BitsMask | NoMask, Discriminator("kind")
]
