"""``cifar_convnet`` on the drawn pictures of ``shapes``: they are easier than photographs."""

from gpuconv.recipes.cifar10 import CIFAR10
from gpuconv.recipes.recipe import Recipe

SHAPES = Recipe(
    says="six 3x3 convolutions on shapes, which are drawn on the spot",
    model="cifar_convnet",
    settings=CIFAR10.settings.replace(epochs=3, views="none"),
    measured="99.85 % of the test images of shapes after 3 epochs, 30 s on 2 CPU cores (seed 0)")
