"""Models: what they promise, what recipes can name, and weights with their cards."""

from bigmap.models.base import ClassEntry, LayerSpec, MapModel, ModelSpec, NetworkModel, OptionValue
from bigmap.models.card import ModelCard, Training, read_card
from bigmap.models.checkpoint import read_tensors, save_weights
from bigmap.models.legends import LEGENDS
from bigmap.models.registry import ModelChoice, build_model, find_model, list_models, refuse_random

__all__ = [
    "LEGENDS",
    "ClassEntry",
    "LayerSpec",
    "MapModel",
    "ModelCard",
    "ModelChoice",
    "ModelSpec",
    "NetworkModel",
    "OptionValue",
    "Training",
    "build_model",
    "find_model",
    "list_models",
    "read_card",
    "read_tensors",
    "refuse_random",
    "save_weights",
]
