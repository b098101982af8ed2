"""A recipe's model setting -> what builds the model, and which weights it takes."""

from __future__ import annotations

from pathlib import Path

from bigmap.config import Recipe
from bigmap.config.recipe import ModelConfig
from bigmap.errors import RecipeError
from bigmap.models import LEGENDS, ClassEntry, ModelChoice, find_model


def choose_model(model: ModelConfig) -> ModelChoice:
    """Turn the recipe's model setting into what builds it.

    Raises
    ------
    RecipeError
        If it names a legend that does not exist.
    """
    legend = model.legend
    if isinstance(legend, str):
        if legend not in LEGENDS:
            raise RecipeError(
                f"model.legend: {legend!r} is unknown; there are {', '.join(LEGENDS)}, or list "
                "classes with value, name and colour"
            )
        classes = LEGENDS[legend]
    else:
        classes = tuple(ClassEntry(**entry.model_dump()) for entry in legend or ())
    return ModelChoice(
        model.name,
        options=tuple(sorted(model.options.items())),
        bands=model.bands,
        legend=classes or None,
        weights=model.weights,
    )


def use_trained_weights(recipe: Recipe) -> Recipe:
    """Let weights in ``training.weights`` count where ``model.weights`` names none.

    Everything that maps or scores by a recipe goes through this; training itself does not.
    """
    model, training = recipe.model, recipe.training
    if training is None or model.weights is not None or not Path(training.weights).is_file():
        return recipe
    if not find_model(model.name).has_weights:
        return recipe
    return recipe.model_copy(
        update={"model": model.model_copy(update={"weights": training.weights})}
    )


def advise_weights(recipe: Recipe) -> str:
    """Tell where a recipe's model may get weights from."""
    trained = "bigmap train writes some"
    if recipe.training is not None:
        trained = f"{recipe.training.weights} is not there before bigmap train has written it"
    return (
        f"name some in model.weights ({trained}), or add --allow-random-weights (in Python "
        "allow_random_weights=True)"
    )
