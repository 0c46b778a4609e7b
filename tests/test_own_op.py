"""The page "Write your own op": its code runs as it stands, on NumPy and through its CUDA."""

import pathlib
import re
import runpy

import numpy as np
import pytest

import gpuconv as gpc
from check import DTYPES, close, eps, host, make, nchw, nhwc
from gpuconv import backend, guide, kernels

PAGE = pathlib.Path(guide.__file__).with_name("own_op.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
CUDA = re.findall(r"^```cuda\n(.*?)^```$", PAGE, flags=re.M | re.S)


def written(folder):
    """The two files that the page tells to write."""
    (folder / "lrn.py").write_text("\n\n".join(PYTHON), encoding="utf-8")
    (folder / "lrn.cu").write_text("".join(CUDA), encoding="utf-8")
    return folder / "lrn.py"


@pytest.fixture
def page(xp, tmp_path, monkeypatch):
    """The names of lrn.py, after all of it has run; its GPU part too where xp is cupy."""
    if xp is np:
        none = backend.DeviceInfo("no cupy", "")
        monkeypatch.setattr(gpc, "device_info", lambda: none)
    launched = []
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda get, name, *args, **options: (
        launched.append(name), launch(get, name, *args, **options)))
    names = runpy.run_path(str(written(tmp_path)))
    assert set(launched) == (set() if xp is np else {"lrn_forward", "lrn_backward"})
    return names


def test_the_page_is_whole():
    assert len(PYTHON) == 5 and len(CUDA) == 1
    assert PAGE.count("```") == 2 * 6  # no other block: nothing on the page that is not run
    assert len(kernels.signatures(CUDA[0])) == 2


def test_its_code_runs(page):
    assert page["losses"][-1] < 0.1


def test_it_is_pytorchs(page, xp, rng):
    torch = pytest.importorskip("torch")
    x, gy = rng.standard_normal((2, 2, 3, 4, 7))
    theirs = torch.from_numpy(nchw(x)).requires_grad_()
    for size in (1, 3, 4, 15):
        y, pull = gpc.vjp(lambda a: page["local_response_norm"](a, size, 0.4, 0.6, 1.5),  # noqa: B023
                          xp.asarray(x))
        want = torch.nn.functional.local_response_norm(theirs, size, 0.4, 0.6, 1.5)
        close(y, nhwc(want), terms=2 * size + 5)
        gx, = torch.autograd.grad(want, theirs, torch.from_numpy(nchw(gy)))
        close(pull(xp.asarray(gy))[0], nhwc(gx), terms=2 * size + 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(page, xp, rng, dtype):
    """Against float64, on what the dtype can say: one rounding at the end, and one of its sums."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x, gy = (make(a, dtype) for a in rng.standard_normal((2, 2, 2, 2, 6)))
    y, pull = gpc.vjp(lambda a: page["local_response_norm"](a, 3, alpha=0.4), xp.asarray(x))
    gx, = pull(xp.asarray(gy))
    want, pull = gpc.vjp(lambda a: page["local_response_norm"](a, 3, alpha=0.4), x.astype(float))
    for got, exact in ((y, want), (gx, pull(gy.astype(float))[0])):
        got = host(got)
        assert got.dtype == x.dtype
        assert abs(got.astype(float) - exact).max() <= 4 * eps(got.dtype) * abs(exact).max()


def test_it_refuses(page):
    with pytest.raises(ValueError, match="local_response_norm: size is 0, wanted at least 1"):
        page["local_response_norm"](np.ones((1, 2, 2, 3)), size=0)
    with pytest.raises(ValueError, match=r"local_response_norm: x has shape \(3,\)"):
        page["local_response_norm"](np.ones(3))


def test_the_layer_says_what_it_is(page):
    assert "2: LocalResponseNorm2d(5, alpha=0.1, beta=0.75, k=1.0)" in repr(page["model"])


def test_nvrtc_takes_the_source(nvrtc, tmp_path):
    text = kernels.source(written(tmp_path).with_name("lrn.cu"))
    for dtype in map(backend.float_dtype, DTYPES):
        nvrtc(text, kernels.defines(R=5, T=dtype, A=backend.accumulator(dtype),
                                    I=np.dtype("int32")))


# -- a .cu file of one's own -------------------------------------------------------------


def test_headers_are_looked_for_beside_the_file_then_among_ours(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "op.cu").write_text(
        '#include "deep/mine.cuh"\n  # include "common/common.cuh"  //\nop')
    (tmp_path / "deep" / "mine.cuh").write_text('#include "more.cuh"\nmine\n')
    (tmp_path / "deep" / "more.cuh").write_text('#include "common/common.cuh"\nmore\n')
    text = kernels.source(tmp_path / "op.cu")
    common = kernels.source("common/common.cuh")
    assert text == f"{common}\nmore\n\nmine\n\n\nop"  # the second common.cuh is not pasted again
    (tmp_path / "common").mkdir()
    (tmp_path / "common/common.cuh").write_text("my own\n")
    (tmp_path / "other.cu").write_text('#include "common/common.cuh"\n')
    assert kernels.source(str(tmp_path / "other.cu")) == "my own\n\n"  # beside it comes first


def test_headers_that_include_each_other_end(tmp_path):
    (tmp_path / "a.cuh").write_text('#include "b.cuh"\na')
    (tmp_path / "b.cuh").write_text('#include "a.cuh"\nb')
    assert kernels.source(tmp_path / "a.cuh") == "\nb\na"


SCALE = """
#include "common/common.cuh"
using T = CFG_T;
extern "C" __global__ void scale(T* x, float by, int n)
{
    for (int t : grid_stride<int>(n)) x[t] = x[t] * (T)by;
}
extern "C" __global__ void odd(short* x) {}
"""


@pytest.fixture
def scale(tmp_path):
    path = tmp_path / "scale it.cu"  # a blank in the name
    path.write_text(SCALE)
    return path


def test_a_kernel_of_ones_own(cp, scale):
    x = cp.ones(5, "float32")
    kernels.kernel(scale, "scale", T="float32")(5, x, 2.5, 5)
    kernels.kernel(str(scale), "scale", T=x.dtype)(5, x, 2, 5)
    assert x.get().tolist() == [5.0] * 5


@pytest.mark.parametrize("file, function, error, message", [
    ("no such.cu", "scale", FileNotFoundError, r"no CUDA source .*absolute path.* .*no such\.cu"),
    ("scale it.cu", "scael", ValueError, "scale it.cu: .*function 'scael' among scale, odd"),
    ("scale it.cu", "odd", ValueError, r"odd: x is declared short\*, wanted one of .*, int, "),
])
def test_what_is_wrong_is_said_with_the_file(scale, file, function, error, message):
    with pytest.raises(error, match=message):
        kernels.kernel(scale.with_name(file), function, T="float32")


def test_a_relative_path_is_looked_for_in_kernels_only(tmp_path, monkeypatch):
    (tmp_path / "mine.cu").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"needs its absolute path\) .*kernels.mine\.cu"):
        kernels.source("mine.cu")


def test_a_header_that_is_missing_is_named_with_both_places(tmp_path):
    (tmp_path / "op.cu").write_text('#include "gone.cuh"\n')
    with pytest.raises(FileNotFoundError, match=r"no header of op\.cu .*gone\.cuh or .*gone\.cuh$"):
        kernels.source(tmp_path / "op.cu")
