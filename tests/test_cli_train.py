"""``gpuconv train`` as its users meet it."""

import re

import pytest
from cli_tools import SMALL, fails, gpuconv, in_a_terminal
from conftest import HAS_GPU

import gpuconv as gpc

ROW = re.compile(r"^ +\d+( +[\d.,]+%?){7}$", re.M)


def test_train_in_a_pipe(tmp_path):
    path = tmp_path / "net.safetensors"
    done = gpuconv(*SMALL, "--epochs", 2, "--save", path)
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert len(ROW.findall(done.stdout)) == 2
    assert "data    shapes, 40 + 40 images" in done.stdout
    assert "simple_convnet, 84,362 parameters, float32" in done.stdout
    assert f"weights written to {path}" in done.stdout

    state, metadata = gpc.load(path)
    model = gpc.models.MODELS[metadata["model"]["name"]]()
    model.load_state_dict(state)
    _, test = gpc.data.shapes(40, 40)
    found = gpc.train.evaluate(model, test, mean=metadata["mean"], std=metadata["std"])
    assert found.accuracy == metadata["test_accuracy"]
    assert f"{found.accuracy:.2%} of 40 test images right" in done.stdout


def test_the_same_seed_prints_the_same_numbers():
    def numbers(seed):
        row = ROW.search(gpuconv(*SMALL, "--epochs", 1, "--seed", seed).stdout)
        return row[0].split()[:5]  # the others are of time

    assert numbers(1) == numbers(1) != numbers(2)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype):
    done = gpuconv(*SMALL, "--epochs", 1, "--dtype", dtype, "--no-augment", "--momentum", 0)
    assert done.returncode == 0 and f", {dtype}\n" in done.stdout


def test_shapes_take_fewer_epochs_than_photographs():
    assert "4 epochs of 40 images" in gpuconv(*SMALL).stdout


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


def test_a_live_bar_in_a_terminal():
    seen, status = in_a_terminal(*SMALL, "--epochs", "2")
    assert status == 0
    assert "\x1b[" in seen and "epoch 2/2" in seen and "images/s" in seen
    assert "\x1b[?25h" in seen[seen.rindex("\x1b[?25l"):]  # the cursor is back
    last = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", seen[seen.rindex("\x1b[?25h"):])
    assert "test accuracy" in last and "of 40 test images right" in last


def test_ctrl_c():
    seen, status = in_a_terminal(*SMALL, "--epochs", "9999", interrupt_at=b"/9999")
    assert status == 130 and "Traceback" not in seen
    assert seen.rstrip().splitlines()[-1].endswith("gpuconv: interrupted")


# -- wrong usage, failures -----------------------------------------------------------------


@pytest.mark.parametrize("wrong, text", [
    ("--model resnet", "invalid choice: 'resnet'"),
    ("--dtype int8", "invalid choice: 'int8'"),
    ("--data mnist", "invalid choice: 'mnist'"),
    ("--lr -1", "argument --lr: -1 is out of range, wanted at least 0"),
    ("--lr fast", "argument --lr: 'fast' is not a number"),
    ("--lr nan", "argument --lr: nan is out of range"),
    ("--epochs 0", "argument --epochs: 0 is out of range, wanted at least 1"),
    ("--epochs 1.5", "argument --epochs: '1.5' is not a whole number"),
    ("--batch-size 0", "argument --batch-size: 0 is out of range"),
    ("--limit 0", "argument --limit: 0 is out of range"),
    ("--seed 4294967296", "out of range, wanted 0..4294967295"),
    ("--device tpu", "device 'tpu': wanted 'auto', 'cpu', 'cuda'"),
    ("--epoch 3", "unrecognized arguments: --epoch 3"),
])
def test_wrong_usage(wrong, text):
    line = fails(2, "train", *wrong.split())
    assert text in line and "--help)" in line


def test_a_missing_folder(tmp_path):
    missing = tmp_path / "nowhere"
    assert f"--data-dir {missing}: no such file" in fails(1, "train", "--data-dir", missing)
    assert f"there is no folder {missing}" in fails(1, *SMALL, "--save", missing / "a.safetensors")


def test_a_folder_without_cifar10(tmp_path):
    line = fails(1, "train", "--data-dir", tmp_path)
    assert str(tmp_path) in line and "found no" in line


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_cuda_without_a_gpu():
    line = fails(1, *SMALL[:-2], "--device", "cuda")
    assert "driver" in line or "CuPy is not installed" in line or "device" in line


def test_a_loss_that_explodes():
    line = fails(1, *SMALL, "--lr", "1e30", "--epochs", 3)
    assert "a smaller one may help" in line


def test_a_failure_shows_where_if_asked(tmp_path):
    done = gpuconv("train", "--traceback", "--data-dir", tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_it_asks_where_to_save_before_it_trains(tmp_path):
    assert "is a folder" in fails(1, *SMALL, "--epochs", 10**6, "--save", tmp_path)
    assert "no folder" in fails(1, *SMALL, "--epochs", 10**6, "--save", tmp_path / "a" / "b")


def test_shapes_are_nowhere():
    assert "shapes are drawn" in fails(1, *SMALL, "--data-dir", ".")
