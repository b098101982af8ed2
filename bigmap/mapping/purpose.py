"""What blocks are read for: a map, or chips."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bigmap.config import Recipe
from bigmap.config.recipe import InferenceConfig
from bigmap.models import ModelChoice
from bigmap.models.choosing import choose_model
from bigmap.scenes.quality import DateRule

FREE_FIELDS = (
    "cluster",
    "title",
    "inference.batch_windows",
    "reading.on_error",
    "run.block_timeout_s",
    "source.access",
    "source.cache",
    "source.cache_gb",
    "training",
)
"""Settings that a resumed run may change: they decide no value."""


@dataclass(frozen=True)
class Purpose:
    """What a run makes of blocks, and what of its recipe counts for it."""

    path: str
    """Where what is made goes."""
    field: str
    """Of the recipe that names the place, for messages."""
    dates: DateRule
    inference: InferenceConfig
    weights: str | None
    """Of the model, as the recipe names them; None where none are needed."""
    free_fields: tuple[str, ...] = FREE_FIELDS
    """Dotted names of settings that a run which goes on may have changed."""

    @classmethod
    def of_map(cls, recipe: Recipe) -> Purpose:
        """Return what a map needs."""
        return cls(
            recipe.output.path,
            "output.path",
            DateRule(**recipe.dates.model_dump()),
            recipe.inference,
            recipe.model.weights,
            (*FREE_FIELDS, "samples"),
        )

    def choose_model(self, recipe: Recipe) -> ModelChoice:
        """Return what builds the recipe's model with these weights."""
        return replace(choose_model(recipe.model), weights=self.weights)
