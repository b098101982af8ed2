"""The files of an evaluation: numbers for people, a picture for each model, JSON without NaN."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bigmap.errors import OutputError
from bigmap.learning.evaluation import Evaluation, ModelScores
from bigmap.learning.evaluation.reports import (
    draw_confusion,
    format_count,
    format_score,
    list_notes,
    write_reports,
)
from bigmap.learning.metrics import score_confusion
from bigmap.models import LEGENDS

S2GLC = LEGENDS["s2glc"]


def make_evaluation(labels=("dual", "/a/best.safetensors", "/b/best.safetensors")) -> Evaluation:
    confusion = np.diag(np.arange(14) * 100_000)
    confusion[2, 3] = 999_999
    models = tuple(
        ModelScores(label, classes=score_confusion(confusion), notes=("random",))
        for label in labels
    )
    return Evaluation("a | b", models, S2GLC, ("By hand.",), ("Simulated.",))


def test_every_model_has_its_own_picture(tmp_path) -> None:
    files = write_reports(make_evaluation(), tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        "scores.json", "scores.md", "confusion.png", "confusion-best-safetensors.png",
        "confusion-best-safetensors-2.png",
    ]  # fmt: skip
    assert all(file.stat().st_size for file in files)


def test_json_has_no_nan(tmp_path) -> None:
    write_reports(make_evaluation(), tmp_path)
    text = (tmp_path / "scores.json").read_text()
    assert "NaN" not in text
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["models"][0]["classes"]["recall"][0] is None
    assert content["models"][0]["classes"]["confusion"][2][3] == 999_999
    assert content["notes"] == ["Simulated."]


def test_markdown_says_what_must_be_known_first(tmp_path) -> None:
    write_reports(make_evaluation(), tmp_path)
    text = (tmp_path / "scores.md").read_text()
    assert text.index("**Simulated.**") < text.index("**dual: random**") < text.index("| MCC |")
    row = "| 73 cultivated areas | 1,199,999 | 200,000 | 0.1667 | 1.0000 | 0.1667 | 0.2857 |"
    assert row in text
    assert "| 0 clouds | 0 | 0 | - | - | - | - |" in text
    assert "- By hand." in text
    assert list_notes(make_evaluation(("a", "a"))) == ["Simulated.", "a: random"]


def test_a_matrix_of_fourteen_classes_is_large_enough_to_read() -> None:
    figure = draw_confusion(make_evaluation().models[0], S2GLC)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 14 * 14
    assert texts[2 * 14 + 3] == "0.83\n1M"
    assert texts[0] == "-\n0"
    # At least 0.6 inch a cell, for text of 8 points in two lines.
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert box.width / figure.dpi / 14 > 0.6
    assert box.height / figure.dpi / 14 > 0.6
    with pytest.raises(ValueError, match="x has no classes"):
        draw_confusion(ModelScores("x"), S2GLC)


def test_the_table_has_the_second_of_two_classes() -> None:
    scores = ModelScores("ndvi", classes=score_confusion(np.array([[3, 1], [0, 4]])))
    rows = Evaluation("x", (scores, ModelScores("y")), LEGENDS["cropland"], ()).rows()
    assert rows["precision of cropland"][0] == 0.8
    assert rows["recall of cropland"][0] == 1
    assert rows["F1 of cropland"][0] == pytest.approx(8 / 9)
    assert math.isnan(rows["F1 of cropland"][1])
    assert "precision of clouds" not in make_evaluation().rows()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (950, "950"), (1000, "1k"), (12_345, "12.3k"), (999_999, "1M"), (4.5e9, "4.5G")],
)
def test_counts_are_short(count, text) -> None:
    assert format_count(int(count)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "-"),
        (math.inf, "infinite"),
        (0.0, "0.0000"),
        (28.456, "28.46"),
        (-0.5, "-0.5000"),
    ],
)
def test_scores_have_four_digits(value, text) -> None:
    assert format_score(value) == text


def test_a_place_that_cannot_be_written(tmp_path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match=r"--out .*file: cannot be written"):
        write_reports(make_evaluation(), file)
