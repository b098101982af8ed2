"""Training: chips -> weights, on one device or on many."""

from bigmap.learning.training.on_cluster import train_on_cluster
from bigmap.learning.training.progress import SilentTraining, TrainingProgress, TrainingReporter
from bigmap.learning.training.ranks import find_rank
from bigmap.learning.training.standing import TrainingSummary
from bigmap.learning.training.starting import train_recipe

__all__ = [
    "SilentTraining",
    "TrainingProgress",
    "TrainingReporter",
    "TrainingSummary",
    "find_rank",
    "train_on_cluster",
    "train_recipe",
]
