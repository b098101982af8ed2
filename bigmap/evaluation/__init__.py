"""How good a model or a map is: on chips, against labels, and by a reference sample.

Every way ends in an :class:`Evaluation`, which prints as a table and is written as JSON, Markdown
and a picture of each confusion matrix.
"""

from bigmap.evaluation.candidates import Candidate, build_baseline, build_candidate
from bigmap.evaluation.chip_scores import score_chips
from bigmap.evaluation.images import ImageQuality
from bigmap.evaluation.results import Evaluation, ModelScores
from bigmap.evaluation.scoring import ScoringOptions, score_models

__all__ = [
    "Candidate",
    "Evaluation",
    "ImageQuality",
    "ModelScores",
    "ScoringOptions",
    "build_baseline",
    "build_candidate",
    "score_chips",
    "score_models",
]
