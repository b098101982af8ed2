"""What a search found, kept and left out, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bigmap.scenes.items import ItemRow, ItemTable

Kind = Literal[
    "duplicate",
    "contradiction",
    "assumed-offset",
    "too-cloudy",
    "unknown-cloud",
    "missing-asset",
    "mission",
    "unusable",
    "bounds",
    "access",
]

HEADINGS: dict[Kind, str] = {
    "duplicate": "duplicates left out",
    "contradiction": "items whose flag, baseline and raster offset contradict each other",
    "assumed-offset": "items whose offset was assumed from a date",
    "too-cloudy": "items above the cloud limit",
    "unknown-cloud": "items kept without a cloud cover",
    "missing-asset": "items without a wanted asset, left out",
    "mission": "items of other missions than Sentinel-2, left out",
    "unusable": "items that cannot be used, left out",
    "bounds": "items whose grid does not fit their geometry or proj:bbox; the larger counts",
    "access": "places that need access settings",
}
_EXAMPLES = 5
_MONTHS = 12
_MOST_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about one item, or about one place where files lie."""

    kind: Kind
    item: str
    detail: str

    def __post_init__(self) -> None:
        """Make what a catalogue wrote fit for terminals, JSON and Parquet."""
        for name in ("item", "detail"):
            object.__setattr__(self, name, _printable(getattr(self, name)))


@dataclass(frozen=True)
class Audit:
    """Counts and findings of one search."""

    found: int
    """Items that the source gave."""
    kept: int
    elsewhere: tuple[tuple[str, int], ...]
    """Reason and number of items outside the collection, the dates or the area."""
    baselines: tuple[tuple[str, int], ...]
    """Processing baseline and number of kept items; more than one is a mixture."""
    empty_months: tuple[str, ...]
    """Months of the recipe, as ``2024-05``, without any kept item."""
    findings: tuple[Finding, ...]

    @property
    def left_out(self) -> int:
        """Items that are neither kept nor elsewhere: found = kept + elsewhere + left out."""
        return self.found - self.kept - sum(count for _, count in self.elsewhere)

    def of(self, kind: Kind) -> tuple[Finding, ...]:
        """Return the findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain values that JSON can hold."""
        return asdict(self)

    def lines(self, *, examples: int | None = _EXAMPLES) -> list[str]:
        """Describe the search in plain lines.

        Parameters
        ----------
        examples
            How many findings of each kind are told one by one: by default a few, but all of
            contradictions; 0 for counts alone, None for all of them.
        """
        lines = [f"items found: {self.found}, kept: {self.kept}"]
        lines += [f"items outside {reason}: {count}" for reason, count in self.elsewhere]
        if self.left_out:
            lines.append(f"items left out: {self.left_out}, as follows")
        if len(self.baselines) > 1:
            parts = ", ".join(f"{baseline}: {count}" for baseline, count in self.baselines)
            lines.append(f"mixed processing baselines ({parts})")
        if self.empty_months:
            lines.append(f"no item in {_list_months(self.empty_months)}")
        counts = Counter(finding.kind for finding in self.findings)
        for kind, heading in HEADINGS.items():
            if not counts[kind]:
                continue
            lines.append(f"{heading}: {counts[kind]}")
            shown = self.of(kind)
            shown = shown if examples and kind == "contradiction" else shown[:examples]
            lines += [f"  {finding.item}: {finding.detail}" for finding in shown]
            if shown and len(shown) < counts[kind]:
                lines.append(f"  and {counts[kind] - len(shown)} more")
        return lines


def _printable(text: str) -> str:
    """Escape lone surrogates and what steers a terminal, and cut what is absurdly long."""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _list_months(months: tuple[str, ...]) -> str:
    shown = ", ".join(months[:_MONTHS])
    return shown if len(months) <= _MONTHS else f"{shown} and {len(months) - _MONTHS} more months"


@dataclass(frozen=True)
class Catalogue:
    """The items of a map and how they were chosen."""

    rows: ItemTable
    """In the order of solar day, time and id, which is total."""
    audit: Audit


def order_of(row: ItemRow) -> tuple[object, ...]:
    """Return the sorting key of rows: solar day, time, id, collection."""
    return row.solar_day, row.datetime, row.id, row.collection
