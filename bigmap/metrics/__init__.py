"""Scores of maps, streamed over blocks, so that a map of any size can be scored.

Each score has an accumulator: ``update`` adds a block, ``merge`` adds what another accumulator has
seen, ``compute`` returns a frozen record. Blocks may come in any order and any cut; the result is
that of the whole map. What is not defined, such as the recall of a class that does not occur, is
NaN, never 0.
"""

from bigmap.metrics.classes import ClassScores, ConfusionMatrix, score_confusion
from bigmap.metrics.images import HALO_PX, ImageScores, ImageSums, add_halo
from bigmap.metrics.instances import InstanceParts, InstanceScores
from bigmap.metrics.spectrum import PowerSpectrum, SpectrumSums

__all__ = [
    "HALO_PX",
    "ClassScores",
    "ConfusionMatrix",
    "ImageScores",
    "ImageSums",
    "InstanceParts",
    "InstanceScores",
    "PowerSpectrum",
    "SpectrumSums",
    "add_halo",
    "score_confusion",
]
