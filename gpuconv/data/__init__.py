"""Data sets as arrays, and batches of them."""

from gpuconv.data.augment import Augment, augment_batch
from gpuconv.data.cifar10 import cifar10, cifar10_path, cifar10_places
from gpuconv.data.dataset import Dataset
from gpuconv.data.folder import folder
from gpuconv.data.images import read_image
from gpuconv.data.loader import Loader
from gpuconv.data.npz import npz
from gpuconv.data.shapes import shapes
from gpuconv.data.source import Source

__all__ = ["Augment", "Dataset", "Loader", "Source", "augment_batch", "cifar10", "cifar10_path",
           "cifar10_places", "folder", "npz", "read_image", "shapes"]
