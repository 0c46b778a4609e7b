"""Recipes: named ways to train, measured. Settings only; each in a file of its own.

To add one: a file like ``cifar10.py``, a line in RECIPES, and the accuracy that it was seen to
reach.
"""

from gpuconv.recipes.cifar10 import CIFAR10
from gpuconv.recipes.folder import FOLDER
from gpuconv.recipes.recipe import Recipe
from gpuconv.recipes.shapes import SHAPES
from gpuconv.recipes.simple import SIMPLE
from gpuconv.recipes.speedrun94 import SPEEDRUN94
from gpuconv.recipes.speedrun94_quick import SPEEDRUN94_QUICK

RECIPES: dict[str, Recipe] = {
    "cifar10": CIFAR10, "folder": FOLDER, "shapes": SHAPES, "simple": SIMPLE,
    "speedrun94": SPEEDRUN94, "speedrun94-quick": SPEEDRUN94_QUICK}
USUAL = {"cifar10": "cifar10", "shapes": "shapes", "folder": "folder", "npz": "folder"}


def usual(kind: str, model: str | None = None) -> str:
    """Return the name of the recipe for data of that kind (of ``data.Source``), and that model.

    A folder and an .npz file have one recipe for all models: those of other models are made for the
    50,000 images of CIFAR-10.

    >>> usual("shapes"), usual("shapes", "simple_convnet"), usual("npz", "simple_convnet")
    ('shapes', 'simple', 'folder')
    """
    name = USUAL[kind]
    if name == "folder" or model in (None, RECIPES[name].model):
        return name
    return next((other for other, recipe in RECIPES.items() if recipe.model == model), name)


__all__ = ["RECIPES", "USUAL", "Recipe", "usual"]
