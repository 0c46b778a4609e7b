"""Which data: what ``--data`` says, as a record that a run can keep and load again."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuconv.data.cifar10 import cifar10, cifar10_path
from gpuconv.data.dataset import Dataset
from gpuconv.data.folder import folder, folder_by_position, whole_folder
from gpuconv.data.images import resized
from gpuconv.data.listing import unused_set
from gpuconv.data.npz import npz, npz_by_position, whole_npz
from gpuconv.data.shapes import shapes
from gpuconv.jsontext import is_count, is_number
from gpuconv.messages import did_you_mean

MANIFEST_KINDS = ("folder", "npz")  # whose images may change: runs keep a manifest of them
KINDS = ("auto", "cifar10", "shapes", "folder", "npz")
WANTED = "wanted cifar10, shapes, a folder of images per class, or an .npz file"
BY_POSITION, BY_ITEM = 1, 2  # split by position in the set; by file name, or pixels in an .npz
DRAWN = 10_000, 2_000  # images of shapes, without a limit
ARCHIVES = (".tar.gz", ".tgz", ".tar")


@dataclasses.dataclass(frozen=True)
class Source:
    """Source of images; ``dataclasses.asdict`` makes JSON of it.

    Args:
        kind: one of KINDS; auto is cifar10 if it is found, else shapes.
        path: absolute path; None: cifar10's default places, or nothing to read.
        limit: number of first images of each set to use; None: all.
        image_size: height and width in pixels; None: the images' own, and 32 for a folder.
        test_share: share of each class to test on, if there is no test set.
        seed: of the split.
        split: BY_ITEM, or BY_POSITION as in older runs.
        skip_broken: whether to leave out images of a folder that cannot be read, see ``folder``.

    Raises:
        ValueError: unknown kind or split; a kind that needs a path has none; a limit or size below
            1.

    >>> Source("shapes", limit=100).load()[0].images.shape
    (100, 32, 32, 3)
    """

    kind: str = "auto"
    path: str | None = None
    limit: int | None = None
    image_size: int | None = None
    test_share: float = 0.2
    seed: int = 0
    split: int = BY_ITEM
    skip_broken: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.kind not in KINDS:
            raise ValueError(f"data of kind {self.kind!r:.80}: wanted one of {', '.join(KINDS)}")
        if self.kind in MANIFEST_KINDS and not self.path:
            raise ValueError(f"data of kind {self.kind} needs a path")
        for name in ("limit", "image_size", "seed"):
            if isinstance(value := getattr(self, name), np.integer):
                object.__setattr__(self, name, int(value))
        for name in ("limit", "image_size"):
            value = getattr(self, name)
            if value is not None and not is_count(value, 1):
                raise ValueError(f"data: {name} {value!r:.80}, wanted a whole number, at least 1")
        if not is_number(self.test_share, 0, 1):
            raise ValueError(f"data: test_share {self.test_share!r:.80}, wanted 0..1")
        if not is_count(self.seed):
            raise ValueError(f"data: seed {self.seed!r:.80}, wanted a whole number, at least 0")
        if not isinstance(self.path, str | None) or "\0" in (self.path or ""):
            raise ValueError(f"data: path {self.path!r:.80}, wanted text")
        if not isinstance(self.skip_broken, bool):
            raise ValueError(f"data: skip_broken {self.skip_broken!r:.80}, wanted true or false")
        if self.split not in (BY_POSITION, BY_ITEM):
            raise ValueError(f"data: split {self.split!r:.80}, wanted {BY_POSITION} or {BY_ITEM}")

    @staticmethod
    def from_options(text: str | os.PathLike | None = None, *,
                     data_dir: str | os.PathLike | None = None, **more: Any) -> "Source":
        """Return the source that ``--data TEXT --data-dir DIR`` names.

        Args:
            text: cifar10, shapes, or the path of a folder or an .npz file; None: cifar10 if it is
                found, else shapes.
            data_dir: folder of CIFAR-10.
            more: limit, image_size, test_share, seed, skip_broken: fields of Source.

        Raises:
            FileNotFoundError: text or data_dir is a path that does not exist.
            ValueError: text is none of these, or the two contradict each other.
        """
        text = None if text is None else os.fspath(text)
        if data_dir is not None:
            if text not in (None, "cifar10"):
                what = "shapes are drawn" if text == "shapes" else f"{text} is a place already"
                raise ValueError(f"--data-dir {data_dir} is where CIFAR-10 is; {what}")
            if not os.path.exists(data_dir):
                raise FileNotFoundError(f"--data-dir {data_dir}: no such file or folder")
            return Source("cifar10", _absolute(data_dir), **more)
        if text is None or text in ("auto", "cifar10", "shapes"):
            return Source(text or "auto", **more)
        place = _absolute(text)
        if not os.path.exists(place):
            raise FileNotFoundError(f"data {text}: no such file or folder; {WANTED}"
                                    f"{did_you_mean(text, ('cifar10', 'shapes'))}")
        if text.lower().endswith(".npz"):
            return Source("npz", place, **more)
        if os.path.isdir(place):
            return Source("cifar10" if cifar10_path(place) else "folder", place, **more)
        if text.lower().endswith(ARCHIVES):
            return Source("cifar10", place, **more)
        raise ValueError(f"data {text}: {WANTED}")

    def resolved(self, download: bool = False) -> "Source":
        """Return the source with "auto" resolved and with the path of CIFAR-10."""
        if self.kind not in ("auto", "cifar10") or self.path:
            return self
        found = cifar10_path()
        if found:
            return dataclasses.replace(self, kind="cifar10", path=_absolute(found))
        kind = "cifar10" if download or self.kind == "cifar10" else "shapes"
        return dataclasses.replace(self, kind=kind)

    def load(self, download: bool = False,
             progress: Callable[[int, int, str], object] | None = None) -> tuple[Dataset, Dataset]:
        """Load the training and the test set.

        Args:
            download: fetch CIFAR-10 if it is not there; never anything else.
            progress: called with (so far, in all, "bytes" of a download or "images" read).

        Returns:
            (train, test)

        Raises:
            OSError, ValueError: the data are missing, damaged, or of another kind; says where.
        """
        def tell(unit: str) -> Callable[[int, int], object] | None:
            return (lambda done, size: progress(done, size, unit)) if progress else None

        source = self.resolved(download)
        if source.kind == "folder":
            assert source.path is not None
            read = folder if source.split == BY_ITEM else folder_by_position
            return read(source.path, source.image_size or 32, source.test_share, source.seed,
                        limit=source.limit, progress=tell("images"),
                        skip_broken=source.skip_broken)
        if source.kind == "npz":
            assert source.path is not None
            open_file = npz if source.split == BY_ITEM else npz_by_position
            return open_file(source.path, source.image_size, source.test_share, source.seed,
                             limit=source.limit)
        if source.kind == "shapes":
            both = shapes(*(min(source.limit or count, count) for count in DRAWN))
        else:
            both = cifar10(source.path, download, progress=tell("bytes"))
        train, test = (part[:source.limit] for part in both)
        if source.image_size:
            train, test = (dataclasses.replace(part, images=resized(part.images, source.image_size))
                           for part in (train, test))
        return train, test

    def load_whole(self, names: Sequence[str] = (), only: bool = False,
                   progress: Callable[[int, int, str], object] | None = None) -> Dataset:
        """Read the images of a folder or an .npz file without splitting them; ``limit`` is unused.

        Args:
            names: of a folder, images that come first, in this order.
            only: whether to read no other images of a folder.
            progress: as of ``load``.

        Raises:
            OSError, ValueError: as ``load``.
        """
        assert self.kind in MANIFEST_KINDS and self.path is not None
        if self.kind == "npz":
            return whole_npz(self.path, self.image_size)
        return whole_folder(self.path, self.image_size or 32, names, only, progress=(
            lambda done, size: progress(done, size, "images")) if progress else None,
            skip_broken=self.skip_broken)

    def describe(self, train: Dataset, test: Dataset | None = None) -> str:
        """Return a line about the sets that ``load`` or ``load_whole`` returned."""
        H, W = train.images.shape[1:3]
        images = f"{len(train):,}{'' if test is None else f' + {len(test):,}'} images"
        if train.name.startswith("shapes") and self.kind in ("auto", "shapes"):
            why = "; found no CIFAR-10 (--download fetches it)" if self.kind == "auto" else ""
            return f"shapes, {images}, drawn{why}"
        if self.kind in ("auto", "cifar10"):
            return f"CIFAR-10, {images}, from {self.path or cifar10_path()}"
        name = train.name.removesuffix(" train")
        idle = self.split == BY_ITEM and self.kind == "folder" and unused_set(self.path or "")
        return (f"{name}, {len(train.classes)} classes, {images} of {H}x{W}, from {self.path}"
                + (f"; {idle}/ is not used" if idle else ""))


def _absolute(path: str | os.PathLike) -> str:
    return str(pathlib.Path(path).expanduser().absolute())
