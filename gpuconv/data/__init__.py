"""Data sets as arrays, and batches of them."""

from gpuconv.data.augment import Augment, augment_batch
from gpuconv.data.cifar10 import cifar10, cifar10_path, cifar10_places
from gpuconv.data.dataset import Dataset
from gpuconv.data.loader import Loader
from gpuconv.data.shapes import shapes

__all__ = ["Augment", "Dataset", "Loader", "augment_batch", "cifar10", "cifar10_path",
           "cifar10_places", "shapes"]
