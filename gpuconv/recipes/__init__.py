"""Recipes: named ways to train, measured. Settings only; each in a file of its own.

To add one: a file like ``cifar10.py``, a line in RECIPES, and the accuracy that it was seen to
reach.
"""

from gpuconv.recipes.cifar10 import CIFAR10
from gpuconv.recipes.folder import FOLDER
from gpuconv.recipes.recipe import Recipe
from gpuconv.recipes.shapes import SHAPES
from gpuconv.recipes.simple import SIMPLE

RECIPES: dict[str, Recipe] = {"cifar10": CIFAR10, "folder": FOLDER, "shapes": SHAPES,
                              "simple": SIMPLE}
USUAL = {"cifar10": "cifar10", "shapes": "shapes", "folder": "folder", "npz": "folder"}
# the recipe for data of that kind, unless one is named

__all__ = ["RECIPES", "USUAL", "Recipe"]
