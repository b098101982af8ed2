"""What a search says of itself, in short and in full."""

from bigmap.scenes.catalog import Audit, Finding

FINDINGS = tuple(
    Finding(kind, f"item{number}", "why")
    for kind, count in (("duplicate", 7), ("contradiction", 6))
    for number in range(count)
)
AUDIT = Audit(17, 7, (("the area", 3),), (("04.00", 4), ("05.10", 3)), ("2024-03",), FINDINGS)
COUNTS = [
    "items found: 17, kept: 7",
    "items outside the area: 3",
    "items left out: 7, as follows",
    "mixed processing baselines (04.00: 4, 05.10: 3)",
    "no item in 2024-03",
    "duplicates left out: 7",
    "items whose flag, baseline and raster offset contradict each other: 6",
]


def test_some_findings_are_told_and_all_contradictions():
    lines = AUDIT.lines()
    assert [line for line in lines if not line.startswith("  ")] == COUNTS
    assert lines.count("  and 2 more") == 1
    assert sum(line.endswith(": why") for line in lines) == 5 + 6


def test_counts_alone():
    assert AUDIT.lines(examples=0) == COUNTS


def test_everything():
    assert sum(line.endswith(": why") for line in AUDIT.lines(examples=None)) == 7 + 6
