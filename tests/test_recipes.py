"""Recipes are settings that work, and settings are values that can be written down."""

import dataclasses
import json
import re

import numpy as np
import pytest

from gpuconv import models, optim
from gpuconv.data import Dataset
from gpuconv.recipes import RECIPES, USUAL
from gpuconv.train import Settings, fit


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_done(name):
    """One epoch on eight images, with the very model and settings."""
    recipe = RECIPES[name]
    description = models.describe(recipe.model)
    H, W, C = models.input_shape(description)
    images = np.random.default_rng(0).integers(0, 256, (8, H, W, C), np.uint8)
    data = Dataset(images, np.arange(8, dtype="int32"), tuple("abcdefghij"), "eight")
    model = models.build(description)
    settings = recipe.settings.replace(epochs=1, batch_size=4)
    history = fit(model, data, test=data, **settings.fit_arguments(model))
    assert np.isfinite(history.last.train.loss) and recipe.says
    assert re.match(r"\d+(\.\d)? % of .* after \d+ epochs.* \(seed 0\)$", recipe.measured)


def test_every_kind_of_data_has_its_usual_recipe():
    assert set(USUAL.values()) <= set(RECIPES)
    assert set(USUAL) == {"cifar10", "shapes", "folder", "npz"}


def test_settings_survive_json():
    changed = Settings(epochs=3, optimizer="adamw", clip_norm=1.0, ema=0.99, patience=4)
    assert Settings.of(json.loads(json.dumps(dataclasses.asdict(changed)))) == changed


def test_settings_make_what_they_say():
    model = models.simple_convnet()
    made = Settings(optimizer="adamw", lr=0.01, momentum=0.8, weight_decay=0.1, schedule="cosine",
                    flip=False, crop=0, ema=0.9, clip_norm=2.0).fit_arguments(model)
    assert isinstance(made["optimizer"], optim.AdamW) and made["ema"].decay == 0.9
    group, = made["optimizer"].groups
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.1)
    assert made["schedule"] == optim.Cosine() and made["augment"] is None
    assert made["clip_norm"] == 2.0
    model = models.simple_convnet()
    made = Settings(momentum=0.0).fit_arguments(model)
    assert isinstance(made["optimizer"], optim.SGD)
    assert not made["optimizer"].groups[0]["nesterov"]


@pytest.mark.parametrize("wrong, text", [
    (dict(optimizer="lion"), "optimizer 'lion', wanted one of sgd, adam, adamw"),
    (dict(schedule="random"), "schedule 'random', wanted one of constant, step"),
    (dict(epochs=0), "epochs 0"), (dict(epochs=1.5), "epochs 1.5"), (dict(epochs=None), "epochs"),
    (dict(batch_size=True), "batch_size True"), (dict(patience=0), "patience 0"),
    (dict(lr=-1.0), "lr -1.0"), (dict(lr=float("nan")), "lr nan"),
    (dict(crop=-1), "crop -1"), (dict(momentum=1.0), "momentum 1.0"), (dict(ema=1.0), "ema 1.0"),
    (dict(label_smoothing=2), "label_smoothing 2"), (dict(clip_norm=0.0), "clip_norm 0.0")])
def test_settings_refuse(wrong, text):
    with pytest.raises(ValueError, match=text):
        Settings(**wrong)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="unknown settings leaning_rate"):
        Settings.of({"leaning_rate": 0.1})
