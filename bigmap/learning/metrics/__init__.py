"""Scores of maps and images, streamed, so that any number of pixels can be scored.

Each score has an accumulator: ``update`` adds a block or an image, ``merge`` adds what another
accumulator has seen, ``compute`` returns a frozen record. They may come in any order, and blocks of
classes in any cut; the result is that of the whole. What is not defined, such as the recall of a
class that does not occur, is NaN, never 0.
"""

from bigmap.learning.metrics.classes import ClassScores, ConfusionMatrix, score_confusion
from bigmap.learning.metrics.images import ImageScores, ImageSums
from bigmap.learning.metrics.instances import InstanceParts, InstanceScores
from bigmap.learning.metrics.spectrum import PowerSpectrum, SpectrumSums

__all__ = [
    "ClassScores",
    "ConfusionMatrix",
    "ImageScores",
    "ImageSums",
    "InstanceParts",
    "InstanceScores",
    "PowerSpectrum",
    "SpectrumSums",
    "score_confusion",
]
