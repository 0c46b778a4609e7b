"""Recipes are settings that work, and settings are values that can be written down."""

import dataclasses
import json
import re

import numpy as np
import pytest

from gpuconv import models, nn, optim
from gpuconv.data import Augment, Dataset
from gpuconv.recipes import RECIPES, USUAL, usual
from gpuconv.train import Group, Settings, fit
from gpuconv.train.param_groups import OPTIMIZERS
from gpuconv.train.settings import OPTIMIZER_SETTINGS


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
    assert recipe.measured == "not measured yet" or re.match(
        r"\d+(\.\d+)? % of .* after \d+ epochs.* \(seed 0\)$", recipe.measured)


def test_every_kind_of_data_has_its_usual_recipe():
    assert set(USUAL.values()) <= set(RECIPES)
    assert set(USUAL) == {"cifar10", "shapes", "folder", "npz"}


@pytest.mark.parametrize("model", ["simple_convnet", "speedrun", "INPUT 8x8x1 | FC 2"])
def test_the_recipe_of_a_folder_is_for_any_model(model):
    assert usual("folder", model) == usual("npz", model) == "folder"


@pytest.mark.parametrize("images, epochs", [(1, 60), (200, 60), (201, 60), (240, 50), (799, 16),
                                            (800, 15), (50_000, 15)])
def test_small_sets_are_seen_more_often(images, epochs):
    assert RECIPES["folder"].settings_for(images, 32).epochs == epochs


@pytest.mark.parametrize("pixels, crop", [(1, 0), (8, 0), (16, 1), (28, 1), (32, 2), (64, 4)])
def test_images_are_moved_by_a_sixteenth_of_their_size(pixels, crop):
    assert RECIPES["folder"].settings_for(1000, pixels).crop == crop


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"folder"}))
def test_other_recipes_do_not_depend_on_the_set(name):
    assert RECIPES[name].settings_for(240, 8) == RECIPES[name].settings


def test_settings_survive_json():
    changed = Settings(epochs=3, optimizer="adamw", clip_norm=1.0, ema=0.99, patience=4)
    assert Settings.from_dict(json.loads(json.dumps(dataclasses.asdict(changed)))) == changed


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


def test_settings_with_groups_survive_json():
    for changed in (RECIPES["speedrun94"].settings,
                    Settings(groups=(Group("*", lr=0.1),), mean=(0.5,), std=(0.25,))):
        values = json.loads(json.dumps(dataclasses.asdict(changed)))
        again = Settings.from_dict(values)
        assert again == changed and isinstance(again.groups[0], Group)


def test_settings_of_an_older_version_mean_what_they_meant():
    old = {field.name: field.default for field in dataclasses.fields(Settings)[:13]}
    assert list(old)[-1] == "patience"
    assert Settings.from_dict(old) == Settings(loss_scale=1.0, master_weights=False)
    made = Settings.from_dict(old).fit_arguments(models.simple_convnet())
    assert (made["reduction"], made["drop_last"], made["normalize"]) == ("mean", False, None)
    assert made["augment"] == Augment() and len(made["optimizer"].groups) == 1


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def named(model, optimizer):
    """[(names of its parameters, its settings)] of each group."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [([names[id(p)] for p in group["params"]], group) for group in optimizer.groups]


def test_the_first_group_that_fits_counts():
    model = small()
    made = Settings(lr=0.1, momentum=0.8, weight_decay=0.01, groups=(
        Group("3.*", lr=0.2, stop=0.5), Group("*.bias", momentum=0.0, weight_decay=0.0)))
    head, biases, rest = named(model, made.fit_arguments(model)["optimizer"])
    assert head[0] == ["3.weight", "3.bias"] and biases[0] == ["0.bias", "1.bias"]
    assert rest[0] == ["0.weight", "1.weight"]
    pick = lambda group: [group[1][name] for name in (  # noqa: E731
        "lr", "momentum", "nesterov", "weight_decay", "stop")]
    assert pick(head) == [0.2, 0.8, True, 0.01, 0.5]
    assert pick(biases) == [0.1, 0.0, False, 0.0, 1.0]
    assert pick(rest) == [0.1, 0.8, True, 0.01, 1.0]


def test_groups_of_adam():
    model = small()
    made = Settings(optimizer="adam", groups=(Group("*.bias", momentum=0.5, lr=0.3),))
    biases, rest = named(model, made.fit_arguments(model)["optimizer"])
    assert (biases[1]["lr"], biases[1]["beta1"], biases[1]["beta2"]) == (0.3, 0.5, 0.999)
    assert (rest[1]["lr"], rest[1]["beta1"]) == (0.05, 0.9)


def test_muon_makes_updates_orthogonal_where_there_are_two_axes():
    model = small()
    made = Settings(optimizer="muon", schedule="linear", groups=(
        Group("3.weight", orthogonal=False), Group("*.weight", iterations=2, normalize=True)))
    arguments = made.fit_arguments(model)
    assert isinstance(arguments["optimizer"], optim.Muon)
    assert arguments["schedule"] == optim.Linear()
    found = [(names, *(group[name] for name in ("orthogonal", "iterations", "normalize")))
             for names, group in named(model, arguments["optimizer"])]
    assert found == [(["3.weight"], False, 5, False), (["0.weight"], True, 2, True),
                     (["1.weight"], False, 2, True),
                     (["0.bias", "1.bias", "3.bias"], False, 5, False)]


def test_groups_of_speedrun94():
    """The specification: rates, decay, and which of the 200 steps."""
    model, settings = models.speedrun(), RECIPES["speedrun94"].settings
    learned = {}
    for names, group in named(model, settings.fit_arguments(model)["optimizer"]):
        for name in names:
            if dict(model.named_parameters())[name].requires_grad:
                learned[name] = [group[key] for key in (
                    "lr", "momentum", "nesterov", "weight_decay", "orthogonal", "stop")]
                if group["orthogonal"]:
                    learned[name] += [group["iterations"], group["normalize"]]
    biases = [0.053, 0.85, True, pytest.approx(0.0755, abs=1e-4), False]
    assert learned.pop("0.bias") == [*biases, 75 / 200]
    assert learned.pop("25.weight") == [0.67, 0.85, True, pytest.approx(0.00597, abs=1e-5), False,
                                        1.0]
    filters = [f"{i}.weight" for i in (2, 6, 9, 13, 16, 20)]
    assert [learned.pop(name) for name in filters] == 6 * [
        [0.24, 0.6, True, 0.0, True, 1.0, 3, True]]
    assert list(learned) == [f"{i}.bias" for i in (4, 7, 11, 14, 18, 21)]
    assert all(found == [*biases, 1.0] for found in learned.values())


def test_the_rest_of_speedrun94():
    assert RECIPES["speedrun94"].settings.replace(groups=()) == Settings(
        epochs=8, batch_size=2000, drop_last=True, optimizer="muon", lr=0.24, momentum=0.6,
        weight_decay=0.0, schedule="linear", mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616), flip="alternate", crop=2, padding_mode="reflect",
        label_smoothing=0.2, reduction="sum", loss_scale=1.0, views="six")


def test_a_group_of_no_parameter_is_refused_with_the_names():
    for names in ("*.wieght", "3.bias"):
        wrong = Settings(groups=(Group("3.*"), Group(names)))
        with pytest.raises(ValueError, match=rf"group '{names.replace('*', '.')}' has no param.*: "
                                             "there are 0.weight, 0.bias, 1.weight"):
            wrong.fit_arguments(small())


def test_settings_in_words():
    said = str(RECIPES["speedrun94"].settings)
    assert said.startswith("muon, linear, lr 0.24, momentum 0.6, weight decay 0, mirrored in every "
                           "other epoch, cropped by 2 of a reflection, label smoothing 0.2")
    assert said.endswith("4 groups (last lr is the largest one's), summed loss, views six")
    alike = Settings(groups=(Group("*.bias", momentum=0.5),))
    assert str(alike).endswith(", 1 group")


@pytest.mark.parametrize("wrong, text", [
    (dict(groups=(Group("*", iterations=3),)), "group '\\*': sgd has no iterations"),
    (dict(groups=(Group("*", nesterov=True),), optimizer="adam"), "adam has no nesterov"),
    (dict(groups=(Group("*", lr=-1.0),)), "lr -1.0 is out of range"),
    (dict(groups=(Group("*", lr=float("nan")),)), "lr nan, wanted a number"),
    (dict(groups=(Group("*", stop=0.0),)), "stop 0.0 is out of range"),
    (dict(groups=(Group("*", momentum=1.0),)), "momentum 1.0 is out of range"),
    (dict(groups=(Group("*", lr="0.1"),)), "lr '0.1', wanted a number"),
    (dict(groups=(Group("*", nesterov=1),)), "nesterov 1, wanted a bool"),
    (dict(groups=({"names": "*"},)), "is no Group of names"),
    (dict(flip="never"), "flip is 'never', wanted False, True or 'alternate'"),
    (dict(padding_mode="wrap"), "padding_mode is 'wrap', wanted 'zeros' or 'reflect'"),
    (dict(reduction="none"), "reduction is 'none', wanted 'mean' or 'sum'"),
    (dict(views="ten"), "views is 'ten', wanted 'none', 'mirror' or 'six'"),
    (dict(mean=(0.5,)), "std None: wanted both, or none"),
    (dict(optimizer="lion"), "optimizer is 'lion', wanted 'sgd', 'adam', 'adamw' or 'muon'"),
    (dict(schedule="random"), "schedule is 'random', wanted 'constant', 'step'"),
    (dict(epochs=0), "epochs is 0"), (dict(epochs=1.5), "epochs is 1.5"),
    (dict(epochs=None), "epochs"),
    (dict(batch_size=True), "batch_size is True"), (dict(patience=0), "patience is 0"),
    (dict(lr=-1.0), "lr is -1.0"), (dict(lr=float("nan")), "lr is nan"),
    (dict(crop=-1), "crop is -1"), (dict(momentum=1.0), "momentum is 1.0"),
    (dict(ema=1.0), "ema is 1.0"),
    (dict(label_smoothing=2), "label_smoothing is 2"), (dict(clip_norm=0.0), "clip_norm is 0.0")])
def test_settings_refuse(wrong, text):
    with pytest.raises((TypeError, ValueError), match=text):
        Settings(**wrong)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_another_optimiser_comes_at_its_usual_rates(name):
    before = RECIPES["speedrun94"].settings
    after = before.with_optimizer(name)
    if name == "muon":
        assert after == before
        return
    assert (after.optimizer, after.groups, after.reduction) == (name, (), "mean")
    assert (after.epochs, after.views, after.flip) == (8, "six", "alternate")
    made = after.fit_arguments(models.speedrun())["optimizer"]
    group, = made.groups
    usual = {"sgd": (0.05, 5e-4), "adam": (0.001, 0.0), "adamw": (0.001, 0.01)}[name]
    assert (group["lr"], group["weight_decay"]) == usual


def test_usual_rates_are_there_for_each_optimiser():
    assert OPTIMIZER_SETTINGS.keys() == OPTIMIZERS.keys()
    assert all(getattr(Settings(), key) == value
               for key, value in OPTIMIZER_SETTINGS["sgd"].items())
    with pytest.raises(ValueError, match="optimizer is 'lion', wanted 'sgd'"):
        Settings().with_optimizer("lion")


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_usual_rates_of_adam_are_its_own(name):
    """Settings that say no rate make the optimiser that is made with none."""
    model, alike = small(), small()
    told, = Settings().with_optimizer(name).fit_arguments(model)["optimizer"].groups
    own, = OPTIMIZERS[name](alike.parameters()).groups
    assert {key: value for key, value in told.items() if key != "params"} == {
        key: value for key, value in own.items() if key != "params"}


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="unknown settings leaning_rate"):
        Settings.from_dict({"leaning_rate": 0.1})
    for edited in ([{"names": "*", "leaning_rate": 1}], 3, ["*"]):
        with pytest.raises(ValueError, match="groups"):
            Settings.from_dict({"groups": edited})
