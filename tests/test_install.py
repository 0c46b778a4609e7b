"""The wheel: what is in it, and that it works from a folder of its own, without a network."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from nvrtc_cases import CASES

import gpuconv
from gpuconv import kernels

HOUSE = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the checkout; without isolation where hatchling is here, so without a network."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    here = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", *here, "-o", folder, HOUSE],
                          capture_output=True, text=True)
    if done.returncode and not here:
        pytest.skip("no hatchling, and no network to fetch it")
    assert not done.returncode, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """run(program, *arguments) in a fresh environment: the wheel, and what is here besides."""
    if not importlib.util.find_spec("pip"):
        pytest.skip("no pip")
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q",
                    "--no-deps", "--no-index", "--disable-pip-version-check", wheel], check=True)
    (site,) = [*folder.glob("lib/python*/site-packages"), *folder.glob("Lib/site-packages")]
    around = pathlib.Path(np.__file__).parents[1]
    (site / "around.pth").write_text(f"{around}\n")  # behind the wheel on sys.path

    def run(program, *arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run([programs / program, *arguments], cwd=folder, env=environment,
                              capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout

    return run


@pytest.fixture
def python(installed):
    """Runs code there."""
    return lambda code: installed("python", "-c", code)


def test_the_wheel_holds_the_package_the_kernels_and_the_mark_of_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {p.relative_to(HOUSE).as_posix() for p in (HOUSE / "gpuconv").rglob("*.py")}
    cuda = {f"gpuconv/cuda/{p.relative_to(HOUSE / 'kernels').as_posix()}"
            for p in (HOUSE / "kernels").rglob("*.cu*")}
    assert ours | cuda | {"gpuconv/py.typed"} <= names
    foreign = {n for n in names if not n.startswith("gpuconv")}
    assert not foreign  # no tests, no top-level "kernels"


def test_the_wheel_declares_what_it_is(wheel):
    archive = zipfile.ZipFile(wheel)
    (described,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    text = archive.read(described).decode()
    assert f"\nVersion: {gpuconv.__version__}\n" in text
    assert "License-Expression: MIT" in text and "Requires-Python: >=3.11" in text
    for extra in ("cuda12", "cuda13", "bfloat16"):
        assert f"\nProvides-Extra: {extra}\n" in text


def test_the_installed_package_is_itself_and_computes(python):
    told = python("""
import pathlib, sys
import numpy as np
import gpuconv as gpc
here = pathlib.Path(gpc.__file__).parent
assert here.is_relative_to(sys.prefix), here
y, pull = gpc.vjp(lambda x: gpc.ops.max_pool2d(x, 2), np.arange(16.0).reshape(1, 4, 4, 1))
print(y.ravel().tolist(), (here / "py.typed").is_file())
""")
    assert told == "[5.0, 7.0, 13.0, 15.0] True\n"


def test_the_installed_package_finds_its_own_kernels(python):
    told = python("""
import pathlib
from gpuconv import kernels
print(kernels.FOLDERS[0] == pathlib.Path(kernels.__file__).parent / "cuda")
print(sorted(p.name for p in kernels.FOLDERS[0].rglob("*.cu")))
print(kernels.source("pool/max_pool.cu"), end="")
""")
    own, files, text = told.split("\n", 2)
    assert own == "True"
    assert files == str(sorted(p.name for p in (HOUSE / "kernels").rglob("*.cu")))
    assert text == kernels.source("pool/max_pool.cu")  # the same, headers pasted in


def test_the_command_is_there(installed):
    assert "usage: gpuconv" in installed("gpuconv", "--help")


def test_nvrtc_compiles_what_was_installed(python, nvrtc):
    text = python("from gpuconv import kernels; print(kernels.source('pool/max_pool.cu'))")
    nvrtc(text, kernels.defines(**CASES["pool/max_pool.cu"][0], T=np.dtype("float32"),
                                A=np.dtype("float32"), I=np.dtype("int32")))
