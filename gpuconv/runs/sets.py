"""The training and the test images of a run, found again after it began.

The manifest of a run rules. A run without one (it has a fixed data set, or is older than manifests)
loads its data as it did, and a checkpoint's fingerprints say whether they are still the same.
"""

import contextlib
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

from gpuconv.data import Dataset, Source
from gpuconv.data.manifest import Differences, Manifest
from gpuconv.data.source import MANIFEST_KINDS
from gpuconv.runs.config import Config

Progress = Callable[[int, int, str], object]
MOVABLE = (*MANIFEST_KINDS, "cifar10")


@dataclasses.dataclass(frozen=True)
class Sets:
    """The training and the test images of a run."""

    train: Dataset
    test: Dataset
    source: Source                          # where they are now
    differences: Differences | None = None  # from the manifest; None: there is none
    repeated: int = 0                       # test images with the pixels of a training image
    unproven: tuple[str, ...] = ()          # of "train", "test": which may be others

    def warnings(self) -> list[str]:
        """Return what a person has to know before these sets are measured."""
        messages = self.differences.sentences() if self.differences else []
        if self.repeated:
            messages.append(f"{self.repeated:,} test images of the run have the pixels of training "
                            "images")
        if self.unproven:
            which = ": the test images may be images that it was trained on" \
                if "test" in self.unproven else "; its test images have not"
            where = f" in {self.source.path}" if self.source.path else ""
            messages.append(f"the images{where} have changed since the run, which kept no list of "
                            f"them{which}")
        return messages

    def warn(self) -> None:
        """Issue the warnings."""
        for text in self.warnings():
            warnings.warn(text, stacklevel=3)

    def check_complete(self) -> None:
        """Refuse to continue a run without all of its images as they were.

        Raises:
            ValueError: images are missing or have changed.
        """
        lost = [name for kind in ("missing", "changed") for of in ("", "_training")
                for name in getattr(self.differences, kind + of, ())]
        if lost:
            raise ValueError(f"{len(lost):,} of the run's images in {self.source.path} are missing "
                             f"or have changed ({', '.join(lost[:3])}{', ...' * (len(lost) > 3)}): "
                             "put them back, and resume the run then; its checkpoints are kept")


def run_sets(config: Config, manifest: Manifest | None, identity: Any = None, *,
             place: str | os.PathLike | None = None, download: bool = False,
             progress: Progress | None = None, skip_broken: bool = False) -> Sets:
    """Load the images of a run.

    Args:
        config, manifest: of the run.
        identity: of a checkpoint; tells without a manifest whether the images are the same.
        place: where the images are now; default: where they were.
        download: fetch CIFAR-10 if it is not there?
        progress: as of ``Source.load``.
        skip_broken: leave out images that cannot be read, also if the run was not told so?

    Raises:
        OSError, ValueError: the images are not there, or they are others.
    """
    source = config.source
    if skip_broken:
        source = dataclasses.replace(source, skip_broken=True)
    if place is None and source.path is not None and not os.path.exists(source.path):
        raise FileNotFoundError(f"{source.path}: no such file or folder; if the images of the run "
                                "have moved, --data says where they are")
    if place is not None:
        if source.kind not in MOVABLE:
            raise ValueError(f"data {place}: the run's images are {source.kind}, which have no "
                             "place")
        source = dataclasses.replace(source, path=str(pathlib.Path(place).expanduser().absolute()))
    if manifest is None:
        train, test = source.load(download, progress)
        found: Sets | None = Sets(train, test, source, unproven=_changed(identity, train, test))
    else:
        found = _own(config, manifest, _whole(config, manifest, source, progress), source, identity)
    if found is None or (place is not None and found.unproven):
        raise ValueError(f"{source.path} holds other images than the run was trained and tested on"
                         + ("; if those have moved, --data says where" if place is None else ""))
    return found


def sets_in(source: Source, config: Config, manifest: Manifest | None, identity: Any = None,
            progress: Progress | None = None) -> tuple[Sets | None, Dataset | None]:
    """Look for the images of a run in a folder or an .npz file.

    Args:
        source: where to look.
        config, manifest, identity, progress: as of ``run_sets``.

    Returns:
        (the run's images, if these are there; all images of ``source``, if they were read).

    Raises:
        OSError, ValueError: as ``Source.load``.
    """
    if source.kind not in MANIFEST_KINDS:
        return None, None
    if manifest is not None:
        whole = _whole(config, manifest, source, progress)
        own = _own(config, manifest, whole, source, identity)
        return own, whole if config.source.limit is None else None
    if source.kind == config.source.kind and identity:
        moved = dataclasses.replace(config.source, path=source.path)
        with contextlib.suppress(ValueError):  # other images: no class of them, one broken, ...
            train, test = moved.load(progress=progress)
            if not _changed(identity, train, test):
                return Sets(train, test, moved), None
    return None, None


def _whole(config: Config, manifest: Manifest, source: Source,
           progress: Progress | None) -> Dataset:
    """Read all images of ``source`` or, if the run had a limit, those that the manifest names."""
    if config.source.skip_broken:
        source = dataclasses.replace(source, skip_broken=True)
    return source.load_whole(manifest.names, config.source.limit is not None, progress)


def _own(config: Config, manifest: Manifest, data: Dataset, source: Source,
         identity: Any) -> Sets | None:
    """Return the images of a run out of a data set, or None if it is another one.

    Raises:
        ValueError: the manifest is not that of the checkpoint with this identity.
    """
    found = manifest.divide(data)
    different = found.differences
    complete = {"train": not (different.missing_training or different.changed_training),
                "test": not (different.missing or different.changed)}
    if found.own and any(complete[name] for name in _changed(identity, found.train, found.test)):
        raise ValueError("manifest.json lists other images than the checkpoint was trained and "
                         "tested on: it is of another run, or was changed")
    if config.source.limit is not None:  # the others were there when the run began
        different = dataclasses.replace(different, new=())
    return Sets(found.train, found.test, source, different,
                manifest.repeated) if found.own else None


def _changed(identity: Any, train: Dataset, test: Dataset) -> tuple[str, ...]:
    """Return which sets are others than those whose fingerprints are in the identity, if any."""
    if not isinstance(identity, dict):
        return ()
    return tuple(name for name, part in (("train", train), ("test", test))
                 if identity.get(f"{name.replace('train', 'training')} set") != part.fingerprint)
