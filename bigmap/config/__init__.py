"""The recipe: one validated, frozen description of a map. The sections are in the modules here."""

from bigmap.config.loading import load_recipe, parse_recipe
from bigmap.config.recipe import Recipe

__all__ = ["Recipe", "load_recipe", "parse_recipe"]
