"""The files of an evaluation: JSON, Markdown, and a picture of each confusion matrix."""

from __future__ import annotations

import json
import math
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigmap.errors import OutputError
from bigmap.learning.evaluation.design import Estimate
from bigmap.learning.evaluation.results import Evaluation, ModelScores
from bigmap.models import ClassEntry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2421"
CELL_INCHES = 0.72
"""Side of a cell of the matrix: two short lines fit."""
DARK = 0.55
"""Share above which a cell is so dark that its text is white."""
CHARACTERS_PER_INCH = 11
"""Of a title."""
UNDEFINED = "-"


def write_reports(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write ``scores.json``, ``scores.md`` and ``confusion.png``.

    Pictures of baselines are ``confusion-NAME.png``.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / "scores.json", out / "scores.md"]
        files[0].write_text(json.dumps(evaluation.to_dict(), indent=1, allow_nan=False) + "\n")
        files[1].write_text(format_markdown(evaluation))
        for model, name in zip(evaluation.models, _name_pictures(evaluation), strict=True):
            if model.classes is not None:
                files.append(out / name)
                draw_confusion(model, evaluation.legend).savefig(files[-1], facecolor="white")
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    return files


def format_score(value: float) -> str:
    """Return a score as tables show it; what is not defined is a dash."""
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "infinite"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def format_markdown(evaluation: Evaluation) -> str:
    """Return the whole evaluation as Markdown."""
    labels = [model.label for model in evaluation.models]
    lines = [f"# Scores of {evaluation.title}", ""]
    lines += [f"**{note}**\n" for note in list_notes(evaluation)]
    lines += _table(["", *labels], [
        [name, *map(format_score, values)] for name, values in evaluation.rows().items()
    ])  # fmt: skip
    lines += _format_classes(evaluation)
    for title, columns, rows in list_sample_tables(evaluation):
        lines += [f"## {title}", "", *_table(columns, rows)]
    lines += ["## How it was scored", "", *(f"- {line}" for line in evaluation.method)]
    lines.append(f"- {UNDEFINED}: not defined, or not made by that model.")
    return "\n".join(lines) + "\n"


def list_notes(evaluation: Evaluation) -> list[str]:
    """Return all that a reader must know first, each once."""
    own = [f"{model.label}: {note}" for model in evaluation.models for note in model.notes]
    return list(dict.fromkeys([*evaluation.notes, *own]))


def _format_classes(evaluation: Evaluation) -> list[str]:
    lines: list[str] = []
    for model in evaluation.models:
        if model.classes is None:
            continue
        scores = model.classes
        true, predicted = (scores.confusion.sum(axis=axis) for axis in (1, 0))
        rows = [
            [
                f"{entry.value} {entry.name}",
                f"{true[index]:,}",
                f"{predicted[index]:,}",
                *(
                    format_score(float(values[index]))
                    for values in (scores.iou, scores.precision, scores.recall, scores.f1)
                ),
            ]
            for index, entry in enumerate(evaluation.legend)
        ]
        lines += [f"## Classes of {model.label}, {scores.pixels:,} pixels", ""]
        columns = ["class", "true pixels", "predicted pixels", "IoU", "precision", "recall", "F1"]
        lines += _table(columns, rows)
    return lines


def list_sample_tables(evaluation: Evaluation) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the tables of a reference sample: title, columns, rows."""
    tables = []
    for model in evaluation.models:
        if model.sample is None:
            continue
        design, areas = model.sample.design, model.sample.class_areas()
        names = [entry.name for entry in evaluation.legend]
        rows = [
            [
                name,
                format_estimate(design.users[index]),
                format_estimate(design.producers[index]),
                format_estimate(areas[index], ",.1f"),
                f"{model.sample.mapped_ha[index]:,.1f}",
            ]
            for index, name in enumerate(names)
        ]
        columns = ["class", "user's accuracy", "producer's accuracy", "area (ha)", "mapped (ha)"]
        tables.append(("Estimates, with 95 % confidence intervals", columns, rows))
        matrix = [
            [
                name,
                *(
                    f"{share:.4f} ({count})"
                    for share, count in zip(
                        design.proportions[index], design.counts[index], strict=True
                    )
                ),
            ]
            for index, name in enumerate(names)
        ]
        title = "Error matrix: share of the area (points); rows are the map, columns the reference"
        tables.append((title, ["", *names], matrix))
    return tables


def format_estimate(estimate: Estimate, style: str = ".3f") -> str:
    """Return an estimate with its interval; a dash where it is not defined."""
    if math.isnan(estimate.value):
        return UNDEFINED
    return f"{estimate.value:{style}} ± {estimate.half_width:{style}}"


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    marks = ["---"] + ["---:"] * (len(columns) - 1)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [columns, marks, *rows]]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def draw_confusion(model: ModelScores, legend: tuple[ClassEntry, ...]) -> Figure:
    """Draw a confusion matrix: colours and shares by row, which is a true class, and counts.

    Raises
    ------
    ValueError
        If the model has no classes.
    """
    if model.classes is None:
        raise ValueError(f"{model.label} has no classes")
    counts = model.classes.confusion
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, where=totals > 0, out=np.full(counts.shape, np.nan))
    number = len(legend)
    side = CELL_INCHES * number
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and few commands draw

    figure = Figure(figsize=(side + 3.6, side + 3.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.nan_to_num(shares), cmap="Greens", vmin=0, vmax=1)
    for row in range(number):
        for column in range(number):
            share = shares[row, column]
            text = UNDEFINED if math.isnan(share) else f"{share:.2f}"
            axes.text(
                column, row, f"{text}\n{format_count(int(counts[row, column]))}",
                ha="center", va="center", fontsize=8,
                color="white" if share > DARK else INK,
            )  # fmt: skip
    names = [entry.name for entry in legend]
    axes.set_xticks(range(number), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(number), names)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    title = f"{model.label}: share of each true class, and pixels"
    width = int(CHARACTERS_PER_INCH * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.wrap(title, width)), color=INK, fontsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def format_count(count: int) -> str:
    """Return a number in few characters: 950, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * limit:
            return f"{float(f'{count / limit:.3g}'):g}{unit}"
    return str(count)


def _name_pictures(evaluation: Evaluation) -> list[str]:
    """Return a file name for each model: plain for the first, and no name twice."""
    names = ["confusion.png"]
    for position, model in enumerate(evaluation.models[1:], start=1):
        slug = re.sub(r"[^0-9A-Za-z]+", "-", model.label.rpartition("/")[2]).strip("-").lower()
        name = f"confusion-{slug or position}.png"
        names.append(name if name not in names else f"confusion-{slug}-{position}.png")
    return names
