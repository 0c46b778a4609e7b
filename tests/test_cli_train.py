"""``gpuconv train`` as its users meet it."""

import json
import re
import struct

import numpy as np
import pytest
from cli_tools import ROOT, SMALL, fails, gpuconv, in_a_terminal
from conftest import HAS_GPU
from PIL import Image

import gpuconv as gpc
from gpuconv import runs
from gpuconv.ops.conv.tuning_table import Table, here

ROW = re.compile(r"^ +\d+( +[\d.,]+%?){7}$", re.M)


def test_train_in_a_pipe(tmp_path):
    done = gpuconv(*SMALL, "--epochs", 2, folder=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert len(ROW.findall(done.stdout)) == 2
    assert "data    shapes, 40 + 40 images" in done.stdout
    assert "simple_convnet, 84,362 parameters, float32" in done.stdout

    folder, = runs.find(tmp_path / "runs")
    assert f"gpuconv report runs/{folder.path.name}\n" in done.stdout
    trained = runs.load(folder.checkpoints()[-1])
    _, test = gpc.data.shapes(40, 40)
    found = gpc.train.evaluate(trained.model, test, mean=trained.mean, std=trained.std)
    assert found.accuracy == trained.metadata["test_accuracy"]
    assert f"{found.accuracy:.2%} of 40 test images right" in done.stdout


def test_every_setting_reaches_the_run(tmp_path):
    folder = tmp_path / "run"
    done = gpuconv(*SMALL[:-4], "--epochs", 1, "--batch-size", 20, "--run", folder, "--recipe",
                   "cifar10", "--optimizer", "adamw", "--lr", 0.002, "--momentum", 0.8, "--ema",
                   0.9, "--weight-decay", 0.1, "--schedule", "cosine", "--crop", 2, "--patience", 3,
                   "--label-smoothing", 0.1, "--clip-norm", 1.5, "--seed", 7, "--dtype", "float64",
                   "--loss-scale", 8, "--no-master-weights", "--eager", "--views", "mirror")
    assert done.returncode == 0, done.stderr
    config = runs.RunFolder(folder).config()
    assert config.settings == gpc.train.Settings(
        epochs=1, batch_size=20, optimizer="adamw", lr=0.002, momentum=0.8, ema=0.9, crop=2,
        weight_decay=0.1, schedule="cosine", patience=3, label_smoothing=0.1, clip_norm=1.5,
        loss_scale=8.0, master_weights=False, views="mirror", flip="alternate",
        padding_mode="reflect")
    assert (config.seed, config.dtype, config.recipe) == (7, "float64", "cifar10")
    assert config.command.startswith("gpuconv train --data shapes")


def test_another_optimiser_comes_at_its_usual_rates(tmp_path):
    done = gpuconv(*SMALL[:-4], "--epochs", 1, "--run", tmp_path / "run", "--recipe", "cifar10",
                   "--optimizer", "adamw", "--weight-decay", 0.1)
    assert ("recipe  cifar10: adamw, one-cycle, lr 0.001, momentum 0.9, weight decay 0.1"
            in done.stdout)


def test_views_after_the_last_epoch(tmp_path):
    folder = tmp_path / "run"
    done = gpuconv(*SMALL, "--epochs", 1, "--views", "six", "--run", folder)
    trained = runs.load(folder)
    _, test = gpc.data.shapes(40, 40)
    found = gpc.train.predictions(trained.model, test, mean=trained.mean, std=trained.std,
                                  views="six")
    told = json.loads((folder / "views.json").read_text())
    assert (told["views"], told["epoch"], told["images"]) == ("six", 1, 40)
    assert told["accuracy"] == found.accuracy and told["loss"] == pytest.approx(found.loss, 1e-5)
    assert done.stdout.endswith(f"{found.accuracy:.2%} of 40 test images right with --views six: "
                                f"{folder / 'views.json'}\n")


def test_speedrun94(tmp_path):
    """The recipe itself, on few images."""
    folder = tmp_path / "run"
    done = gpuconv("train", "--recipe", "speedrun94", "--data", "shapes", "--limit", 30,
                   "--batch-size", 10, "--epochs", 1, "--device", "cpu", "--run", folder)
    assert done.returncode == 0, done.stderr
    assert "speedrun, 1,972,792 parameters" in done.stdout and len(ROW.findall(done.stdout)) == 1
    assert "30 test images right with --views six" in done.stdout
    trained = runs.load(folder)
    assert trained.mean.tolist() == [0.4914, 0.4822, 0.4465]
    config = trained.folder.config()
    assert config.settings.groups and config.recipe == "speedrun94"


def test_runs_against_the_clock(tmp_path):
    file = tmp_path / "timed.json"
    done = gpuconv(*SMALL, "--epochs", 1, "--views", "mirror", "--runs", 2, "--seed", 3, "--run",
                   file, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^seed (\d): (\d+\.\d{3}) s, (\d+\.\d\d)% of the test", done.stdout, re.M)
    told = json.loads(file.read_text())
    assert [seed for seed, *_ in rows] == ["3", "4"] and len(told["runs"]) == 2
    for (_, seconds, accuracy), run in zip(rows, told["runs"], strict=True):
        assert (seconds, accuracy) == (f"{run['seconds']:.3f}", f"{100 * run['accuracy']:.2f}")
    assert re.search(r"^2 runs: \d+\.\d{3} \+- \d+\.\d{3} s, \d+\.\d\d% \+- \d+\.\d\d%$",
                     done.stdout, re.M)
    assert told["config"]["settings"]["views"] == "mirror" and told["environment"]["NumPy"]
    assert list(tmp_path.iterdir()) == [file]  # no folder of a run

    folder = tmp_path / "run"  # the accuracy is that of a run with this seed
    gpuconv(*SMALL, "--epochs", 1, "--views", "mirror", "--seed", 4, "--run", folder)
    seen = json.loads((folder / "views.json").read_text())
    assert seen["accuracy"] == told["runs"][1]["accuracy"]


def test_a_model_in_the_notation_of_the_notes(tmp_path):
    done = gpuconv(*SMALL, "--epochs", 1, "--run", tmp_path / "run", "--model",
                   "INPUT 32x32x3 | [CONV3-4 RELU]*2 POOL2 | FC 10")
    assert done.returncode == 0 and "[CONV3-4 RELU]*2 POOL2 | FC 10, 10," in done.stdout
    assert isinstance(runs.load(tmp_path / "run").model[0], gpc.nn.Conv2d)


def test_a_model_that_cannot_be_read_is_pointed_at(tmp_path):
    done = gpuconv(*SMALL, "--model", "INPUT 32x32x3 | CONV3 RELU | FC 10", folder=tmp_path)
    first, text, carets = done.stderr.splitlines()
    assert done.returncode == 1 and first.startswith("gpuconv: error: ")
    assert text[carets.index("^"):carets.rindex("^") + 1] == "CONV3"
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_photographs(tmp_path):
    """Five minutes from cloning to a net of one's own: files of any size and kind."""
    rng = np.random.default_rng(0)
    for name, colour in (("lemons", (250, 230, 40)), ("plums", (90, 20, 110))):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        for i in range(20):
            size = rng.integers(30, 90, 2)
            pixels = np.clip(rng.normal(colour, 30, (*size, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "fruit" / name / f"{i}.{('jpg', 'png')[i % 2]}")
    done = gpuconv("train", "--data", tmp_path / "fruit", "--epochs", 3, "--model",
                   "INPUT 32x32x3 CONV3-4/4 RELU FC 2", "--device", "cpu", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 classes, 32 + 8 images of 32x32" in done.stdout
    folder, = runs.find(tmp_path / "runs")
    trained = runs.load(folder.path)
    assert trained.classes == ("lemons", "plums") and folder.config().recipe == "folder"
    assert trained.metadata["test_accuracy"] == 1


def small_npz(folder, size=8):
    """40 grey images of two classes."""
    images = np.random.default_rng(0).integers(0, 256, (40, size, size), np.uint8)
    np.savez(folder / "set.npz", images=images, labels=np.arange(40) % 2)
    return ["train", "--data", folder / "set.npz", "--model", f"INPUT {size}x{size}x1 | FC 2",
            "--device", "cpu", "--run", folder / "run"]


def test_what_is_done_to_ones_own_images_is_said_with_how_to_change_it(tmp_path):
    done = gpuconv(*small_npz(tmp_path))
    assert done.returncode == 0, done.stderr
    assert ("\nimages  8x8 (--image-size); mirrored left-right in training (--no-flip if mirror "
            "images differ, as those of digits or text); not moved\n") in done.stdout
    assert "60 epochs of 32 images in batches of 64" in done.stdout
    settings = runs.RunFolder(tmp_path / "run").config().settings
    assert (settings.flip, settings.crop, settings.epochs) == ("alternate", 0, 60)

    done = gpuconv("train", "--resume", tmp_path / "run")  # nothing of it can be changed now
    assert "\nimages  8x8; mirrored left-right in training; not moved\n" in done.stdout
    for option in ("--no-flip", "--no-augment"):
        assert f"{option} cannot be changed" in fails(1, "train", "--resume", tmp_path / "run",
                                                      option)


@pytest.mark.parametrize("options, says, flip, crop", [
    (["--no-flip"], "not mirrored; moved by up to 1 pixel in training (--crop)", False, 1),
    (["--crop", 3], "text); moved by up to 3 pixels in training (--crop)", "alternate", 3),
    (["--no-augment"], "not mirrored; not moved", False, 0)])
def test_images_are_mirrored_and_moved_as_asked(tmp_path, options, says, flip, crop):
    done = gpuconv(*small_npz(tmp_path, size=16), "--epochs", 1, "--image-size", 16, *options)
    assert done.returncode == 0, done.stderr
    line, = re.findall(r"^images  (.*)$", done.stdout, re.M)
    assert line.startswith("the middle of each, scaled to 16x16 (--image-size); ")
    assert line.endswith(says)
    settings = runs.RunFolder(tmp_path / "run").config().settings
    assert (settings.flip, settings.crop) == (flip, crop)


def test_a_notation_says_the_size_of_a_folders_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9, 9), (i * 60, 7 * i, i)).save(tmp_path / "set" / name / f"{i}.png")
    done = gpuconv("train", "--data", tmp_path / "set", "--model", "INPUT 8x8x3 | FC 2",
                   "--epochs", 1, "--device", "cpu", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 + 2 images of 8x8" in done.stdout
    assert runs.newest(tmp_path / "runs").config().source.image_size == 8


def test_tensorboard_events(tmp_path):
    events = pytest.importorskip("tensorboardX").proto.event_pb2
    gpuconv(*SMALL, "--epochs", 2, "--tensorboard", "--run", tmp_path / "run")
    file, = (tmp_path / "run" / "tensorboard").iterdir()
    blob, found = file.read_bytes(), {}
    while blob:  # TFRecord: length, its CRC, the event, its CRC
        size, = struct.unpack("<Q", blob[:8])
        event, blob = events.Event.FromString(blob[12:12 + size]), blob[16 + size:]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    rows = runs.RunFolder(tmp_path / "run").history().rows
    assert found["epoch/test_accuracy"] == [
        (2 * row.epoch, pytest.approx(row.test.accuracy)) for row in rows]


def test_without_tensorboard_one_line_says_how_to_get_it(tmp_path):
    (tmp_path / "tensorboardX.py").write_text("raise ImportError")
    line = fails(1, *SMALL, "--tensorboard", folder=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "-m pip install tensorboardX" in line
    assert not (tmp_path / "runs").exists()


def test_the_same_seed_prints_the_same_numbers(tmp_path):
    def numbers(seed):
        row = ROW.search(gpuconv(*SMALL, "--epochs", 1, "--seed", seed, folder=tmp_path).stdout)
        return row[0].split()[:5]  # the others are of time

    assert numbers(1) == numbers(1) != numbers(2)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(tmp_path, dtype):
    done = gpuconv(*SMALL, "--epochs", 1, "--dtype", dtype, "--no-augment", "--momentum", 0,
                   folder=tmp_path)
    assert done.returncode == 0 and f", {dtype}\n" in done.stdout


def test_shapes_take_fewer_epochs_than_photographs(tmp_path):
    done = gpuconv("train", "--data", "shapes", "--limit", 40, "--device", "cpu", folder=tmp_path)
    assert "3 epochs of 40 images" in done.stdout and "recipe  shapes:" in done.stdout


def test_a_model_has_its_own_recipe(tmp_path):
    assert "recipe  simple: sgd, one-cycle, lr 0.02" in gpuconv(*SMALL, folder=tmp_path).stdout


def test_takes_cifar10_where_it_is_found(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(bytes(3073))  # not the official one
    assert "data_batch_2.bin is missing" in fails(1, "train", "--epochs", 1, folder=tmp_path)


def test_without_cifar10_it_says_what_it_trains_on(tmp_path):
    done = gpuconv("train", "--limit", 20, "--epochs", 1, "--model", "simple_convnet",
                   folder=tmp_path)
    if "CIFAR-10," in done.stdout:
        pytest.skip("CIFAR-10 is in this user's cache")
    assert "shapes, 20 + 20 images, drawn; found no CIFAR-10" in done.stdout


def test_a_live_bar_in_a_terminal(tmp_path):
    seen, status = in_a_terminal(*SMALL, "--epochs", "2", "--run", str(tmp_path / "run"))
    assert status == 0
    assert "\x1b[" in seen and "epoch 2/2" in seen and "images/s" in seen
    assert "\x1b[?25h" in seen[seen.rindex("\x1b[?25l"):]  # the cursor is back
    last = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", seen[seen.rindex("\x1b[?25h"):])
    assert "test accuracy" in last and "of 40 test images right" in last


def test_ctrl_c(tmp_path):
    seen, status = in_a_terminal(*SMALL, "--epochs", "9999", "--run", str(tmp_path / "run"),
                                 interrupt_at=b"/9999")
    assert status == 130 and "Traceback" not in seen
    assert re.search("gpuconv: to go on: .* -m gpuconv train --resume", seen[-300:])


# -- wrong usage, failures -----------------------------------------------------------------


@pytest.mark.parametrize("wrong, text", [
    ("--dtype int8", "invalid choice: 'int8'"),
    ("--lr -1", "argument --lr: -1 is out of range, wanted at least 0"),
    ("--lr fast", "argument --lr: 'fast' is not a number"),
    ("--lr nan", "argument --lr: nan is out of range"),
    ("--epochs 0", "argument --epochs: 0 is out of range, wanted at least 1"),
    ("--epochs 1.5", "argument --epochs: '1.5' is not a whole number"),
    ("--batch-size 0", "argument --batch-size: 0 is out of range"),
    ("--runs 0", "argument --runs: 0 is out of range"),
    ("--limit 0", "argument --limit: 0 is out of range"),
    ("--minutes 0", "argument --minutes: 0 is out of range"),
    ("--seed 4294967296", "out of range, wanted 0..4294967295"),
    ("--device tpu", "device 'tpu': wanted 'auto', 'cpu', 'cuda'"),
    ("--epoch 3", "unrecognized option --epoch; did you mean --epochs"),
])
def test_wrong_usage(wrong, text):
    line = fails(2, "train", *wrong.split())
    assert text in line and "--help)" in line


@pytest.mark.parametrize("wrong, text", [
    ("--model resnet", "unknown model 'resnet'"),
    ("--data mnist", "data mnist: no such file or folder; wanted cifar10, shapes, a folder"),
    ("--recipe soup", "--recipe soup: wanted one of cifar10, folder, shapes, simple"),
    ("--optimizer lion", "optimizer is 'lion', wanted 'sgd', 'adam', 'adamw'"),
    ("--views ten", "views is 'ten', wanted 'none', 'mirror' or 'six'"),
    ("--recipe speedrun94", "group '25.weight' has no parameters of the model"),
    ("--recipe speedrun94 --model speedrun --batch-size 41", "of 41, and there are 40 images: "
                                                             "--batch-size"),
    ("--runs 2 --tensorboard", "--runs is against the clock"),
    ("--runs 2 --patience 3 --minutes 5 --keep 2", "it goes without --patience, --minutes, --keep"),
    ("--runs 2 --seed 4294967295", "seed 4294967296 is outside 0..4294967295"),
    ("--crop 32", "crop 32 is too much for images of 32x32 pixels: wanted less than 32"),
    ("--crop 100000000000", "crop 100000000000 is too much"),
    ("--batch-size 13 --model", "40 images in batches of 13 leave one image for the last batch: "
                                "batch_norm: x (1, 1, 1, 4) has one value per channel"),
    ("--runs 2 --run .", "is a folder, wanted the name of a file"),
    ("--ema 1", "ema is 1.0, wanted at least 0 and less than 1"),
])
def test_what_does_not_exist(tmp_path, wrong, text):
    net = ["INPUT 32x32x3 CONV3-4/4 RELU POOL8 BN FC 10"] * wrong.endswith("--model")
    assert text in fails(1, *SMALL, *wrong.split(), *net, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape, wrong, text", [
    ((2, 2, 3), "--recipe cifar10", "crop 2 is too much for images of 2x2 pixels: wanted less"),
    ((1, 1, 3), "--views six --no-augment", "views six move images by 1 pixel: too much for"),
    ((32, 32, 1), "--recipe speedrun94 --model speedrun --batch-size 8",
     "recipe speedrun94 normalises by mean (0.4914, 0.4822, 0.4465) and std (0.247, 0.2435, "
     "0.2616), and the images have 1 channel"),
    ((4, 4, 2), "--crop 1", "the standard deviation of the channels is [0.0, "),
], ids=["crop", "views", "grey", "flat"])
def test_images_that_do_not_suit_leave_no_folder(tmp_path, shape, wrong, text):
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    if shape[2] == 2:  # a channel that does not vary
        images[..., 0] = 7
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(20) % 2)
    net = ["--model", f"INPUT {'x'.join(map(str, shape))} FC 2"] * ("speedrun" not in wrong)
    assert text in fails(1, "train", "--data", tmp_path / "set.npz", "--device", "cpu",
                         *wrong.split(), *net, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_a_run_does_not_go_where_its_images_are(tmp_path):
    """The next command would take the run's pictures for images of a class."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "1.png")
    text = f"would lie in {tmp_path}, and its pictures be taken for images of a class: --run"
    assert text in fails(1, "train", "--data", ".", folder=tmp_path)
    assert text in fails(1, "train", "--data", tmp_path, "--run", tmp_path / "a" / "run")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1.png", "1.png", "a", "b"]


@pytest.mark.parametrize("wrong, text", [
    ("--lr 1 --momentum 1", "momentum is 1.0, wanted at least 0 and less than 1"),
    ("--clip-norm 0", "clip_norm is 0.0, wanted more than 0"),
    ("--model resnet", "unknown model 'resnet'"),
])
def test_settings_are_refused_before_images_are_read(tmp_path, wrong, text):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text("no image")
    assert text in fails(1, "train", "--data", tmp_path, *wrong.split())


def test_a_missing_folder(tmp_path):
    missing = tmp_path / "nowhere"
    assert f"--data-dir {missing}: no such file" in fails(1, "train", "--data-dir", missing)


def test_a_folder_in_use_is_not_written_to(tmp_path):
    (tmp_path / "letter").write_text("dear")
    assert "is not empty" in fails(1, *SMALL, "--run", tmp_path)
    assert "README.md is a file, wanted the name of a new folder" in fails(
        1, *SMALL, "--run", ROOT / "README.md")


def test_a_folder_without_cifar10(tmp_path):
    line = fails(1, "train", "--data-dir", tmp_path)
    assert str(tmp_path) in line and "found no" in line


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_cuda_without_a_gpu():
    line = fails(1, *SMALL[:-2], "--device", "cuda")
    assert "driver" in line or "CuPy is not installed" in line or "device" in line


def test_a_loss_that_explodes(tmp_path):
    line = fails(1, *SMALL, "--lr", "1e30", "--epochs", 3, folder=tmp_path)
    assert "a smaller one may help" in line


def test_a_failure_shows_where_if_asked(tmp_path):
    done = gpuconv("train", "--traceback", "--data-dir", tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_shapes_are_nowhere():
    assert "shapes are drawn" in fails(1, *SMALL, "--data-dir", ".")


def test_a_table_of_measured_algorithms_wants_a_gpu(tmp_path):
    line = fails(1, *SMALL, "--tuned", tmp_path / "none.json", folder=tmp_path)
    assert "--tuned: there is nothing to choose on the CPU" in line


def test_a_table_of_measured_algorithms_stays_with_its_run(cp, tmp_path):
    """A run that goes on uses it again, whatever has become of the file."""
    config = runs.Config(model={"notation": "INPUT 32x32x3 CONV3-4/4 RELU FC 10"}, device="cuda",
                         source=gpc.data.Source("shapes", limit=20),
                         settings=gpc.train.Settings(epochs=1, batch_size=10))
    folder = runs.RunFolder.create(config, tmp_path / "run", tuned=Table(here(), {}))
    runs.train(config, folder)
    _, told = gpc.load(folder.best())
    assert told["identity"]["tuned"] == gpc.ops.load_table(folder.tuned).hash
    runs.train(config, folder, resume=True)
    folder.tuned.unlink()
    with pytest.raises(ValueError, match="tuned was [0-9a-f]{64}, is None"):
        runs.train(config, folder, resume=True)
