"""Recipe + labels -> training chips, cut on the map's own lattice from the map's own cubes."""

from bigmap.learning.samples.extraction import (
    ExtractSummary,
    SamplesPlan,
    extract_chips,
    plan_samples,
    purpose_of_samples,
)
from bigmap.learning.samples.joining import Counts
from bigmap.learning.samples.splits import SplitAreas, make_splits

__all__ = [
    "Counts",
    "ExtractSummary",
    "SamplesPlan",
    "SplitAreas",
    "extract_chips",
    "make_splits",
    "plan_samples",
    "purpose_of_samples",
]
