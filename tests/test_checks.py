"""What a run is told against the images that it gets."""

import numpy as np
import pytest

from gpuconv.data import Dataset, Source
from gpuconv.recipes import RECIPES
from gpuconv.runs import Config, RunFolder, check_data, check_place
from gpuconv.train import Group, Settings


def images(shape, n=8, name="set"):
    drawn = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    return Dataset(drawn, np.arange(n, dtype=np.int32) % 2, ("a", "b"), name)


def check(shape=(8, 8, 3), n=8, test=None, net=None, dtype="float32", **settings):
    config = Config({"notation": net or f"INPUT {'x'.join(map(str, shape))} FC 2"},
                    Source("shapes"), Settings(**{"batch_size": 4} | settings), dtype=dtype)
    check_data(config, images(shape, n), images(test or shape))


def test_what_fits_passes():
    check()
    check((5, 9, 1), crop=4, views="six", mean=(0.5,), std=(0.2,))
    check((1, 1, 3), crop=0, flip=False, views="mirror")
    check(n=9)  # a last batch of one image, in a net without norms
    check(n=3, drop_last=True, batch_size=3)
    check(groups=(Group("*.bias", lr=0.5, stop=0.5),), optimizer="muon", ema=0.9)


NORM = "INPUT 8x8x3 CONV3-4 RELU POOL8 BN FC 2"  # one pixel, when it comes to the norm


@pytest.mark.parametrize("told, text", [
    (dict(test=(8, 8, 1)), r"set: images are \(8, 8, 1\), the model takes \(8, 8, 3\)"),
    (dict(net="INPUT 9x8x3 FC 2"), r"set: images are \(8, 8, 3\), the model takes \(9, 8, 3\)"),
    (dict(shape=(5, 9, 1), crop=5), "crop 5 is too much for images of 5x9 pixels: wanted less"),
    (dict(crop=8, padding_mode="reflect"), "crop 8 is too much for images of 8x8 pixels"),
    (dict(shape=(1, 4, 1), crop=0, views="six"), "views six move images by 1 pixel: too much for "
                                                 "images of 1x4 pixels"),
    (dict(shape=(8, 8, 1), mean=(0.5,) * 3, std=(0.2,) * 3),
     r"the run normalises by mean \(0.5, 0.5, 0.5\) and std \(0.2, 0.2, 0.2\), and the images have "
     "1 channel$"),
    (dict(drop_last=True, n=3), "whole batches of 4, and there are 3 images"),
    (dict(net=NORM, n=9), "9 images in batches of 4 leave one image for the last batch: batch_nor"),
    (dict(net=NORM, batch_size=1), "8 images in batches of 1 leave one image"),
    (dict(groups=(Group("head.*"),)), r"group 'head\.\*' has no parameters of the model"),
])
def test_refusals(told, text):
    with pytest.raises(ValueError, match=text):
        check(**told)


def test_a_whole_last_batch_or_none_needs_no_trial():
    check(net=NORM, n=8)
    check(net=NORM, n=9, drop_last=True)


def test_images_that_do_not_vary():
    grey = Dataset(np.full((4, 8, 8, 1), 7, np.uint8), np.int32([0, 1, 0, 1]), ("a", "b"), "fog")
    config = Config({"notation": "INPUT 8x8x1 FC 2"}, Source("shapes"), Settings(batch_size=4))
    with pytest.raises(ValueError, match=r"fog: .* channels is \[0\.0\]: one does not vary"):
        check_data(config, grey, grey)


def test_a_dtype_that_is_not_there(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match="pip install ml_dtypes"):
        check(dtype="bfloat16")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_suit_pictures_of_32_pixels(name):
    recipe = RECIPES[name]
    arguments = {"in_channels": 3, "classes": 2, "image": 32}
    config = Config({"name": recipe.model, "arguments": arguments}, Source("shapes"),
                    recipe.settings.replace(batch_size=8), recipe=name)
    check_data(config, images((32, 32, 3)), images((32, 32, 3)))


def test_a_run_among_its_images_is_refused(tmp_path):
    source = Source("folder", str(tmp_path))
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for place in (tmp_path, tmp_path / "run", tmp_path / "a" / ".." / "runs"):
        with pytest.raises(ValueError, match="its pictures be taken for images of a class"):
            check_place(place, source)
    with pytest.raises(ValueError, match="would lie in"):
        check_place(tmp_path / "link" / "run", Source("folder", str(tmp_path / "set")))
    check_place(tmp_path.parent / "run", source)
    check_place(tmp_path / "run", Source("npz", str(tmp_path / "set.npz")))


def test_a_folder_for_a_run(tmp_path):
    config = Config({"notation": "INPUT 8x8x1 FC 2"}, Source("shapes"), Settings())
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file, wanted the name of a new folder"):
        RunFolder.create(config, tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        RunFolder(tmp_path / "nowhere").config()
