"""How good a model or a map is: on chips, against labels, and by a reference sample.

Every way ends in an :class:`Evaluation`, which prints as a table and is written as JSON, Markdown
and a picture of each confusion matrix.
"""

from bigmap.learning.evaluation.chip_scores import score_chips
from bigmap.learning.evaluation.contenders import Contender, build_baseline, build_contender
from bigmap.learning.evaluation.images import ImageQuality
from bigmap.learning.evaluation.map_scores import score_map, split_geometry
from bigmap.learning.evaluation.maps import BlockMapper
from bigmap.learning.evaluation.reference import ReferenceSample, score_reference
from bigmap.learning.evaluation.results import Evaluation, ModelScores, SampleScores
from bigmap.learning.evaluation.scoring import ScoringOptions, score_models

__all__ = [
    "BlockMapper",
    "Contender",
    "Evaluation",
    "ImageQuality",
    "ModelScores",
    "ReferenceSample",
    "SampleScores",
    "ScoringOptions",
    "build_baseline",
    "build_contender",
    "score_chips",
    "score_map",
    "score_models",
    "score_reference",
    "split_geometry",
]
