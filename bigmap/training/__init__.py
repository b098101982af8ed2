"""Training: chips -> weights, on one device or on many."""

from bigmap.training.on_cluster import train_on_cluster
from bigmap.training.progress import SilentTraining, TrainingProgress, TrainingReporter
from bigmap.training.ranks import find_rank
from bigmap.training.standing import TrainingSummary
from bigmap.training.starting import train_recipe

__all__ = [
    "SilentTraining",
    "TrainingProgress",
    "TrainingReporter",
    "TrainingSummary",
    "find_rank",
    "train_on_cluster",
    "train_recipe",
]
