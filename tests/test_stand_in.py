"""The stand-in for CuPy against the real one, as far as that can be asked without a GPU.

Names and arguments come from CuPy itself, dtypes from the tables that its kernels are chosen by.
What needs a device (the order of results, what raises) is written down here from CuPy 14's source.
"""

import copy
import inspect
import operator
import pickle
import re

import numpy as np
import pytest

import gpuconv as gpc
from check import make
from gpuconv.backend import float_dtype
from hostcuda import compiler, fake_ndarray
from hostcuda import fake_cupy as cp

DTYPES = "bool int8 uint8 int32 int64 uint64 float16 float32 float64 bfloat16".split()
OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "lshift": "left_shift",
    "rshift": "right_shift", "and_": "bitwise_and", "or_": "bitwise_or", "xor": "bitwise_xor",
    "lt": "less", "le": "less_equal", "eq": "equal", "ne": "not_equal", "gt": "greater",
    "ge": "greater_equal"}
UNARY = {"neg": "negative", "abs": "absolute", "invert": "invert"}
NUMBERS = [True, 2, 2.5, np.float32(2), np.float64(2), np.int32(2), np.uint8(3), np.bool_(True)]


def numpys(name):
    return float_dtype(name) if name == "bfloat16" else np.dtype(name)


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy", exc_type=ImportError)


# -- names and arguments -----------------------------------------------------------------


def arguments(thing):
    """"a, axis=None, *, dtype=None": from the signature, or the docstring that Cython writes."""
    try:
        given = inspect.signature(thing).parameters.values()
    except ValueError:
        first = thing.__doc__.strip().split("\n")[0]
        listed = re.match(r"[\w.]+\((?:self(?:, )?)?(.*)\)", first)[1]
        return re.sub(r"(?:\w+ )+(?=\w)", "", listed.replace(", ", ",")).replace(",", ", ")
    given = [p.replace(annotation=p.empty) for p in given if p.name != "self"]
    return str(inspect.Signature(given))[1:-1]


FUNCTIONS = [name for name, f in vars(cp).items()
             if inspect.isfunction(f) and not name.startswith("_")
             and name not in (*cp.UFUNCS, "matmul")]
METHODS = [name for name, f in vars(cp.ndarray).items()
           if inspect.isfunction(f) and not name.startswith("_")]
CLASSES = ["Device", "Stream", "Event", "Graph", "MemoryPool"]


def test_the_lists_are_not_empty():
    assert {"arange", "concatenate", "zeros_like"} <= set(FUNCTIONS)
    assert {"astype", "get", "argmax"} <= set(METHODS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_the_arguments_of_cupys(cupy, name):
    assert arguments(getattr(cp, name)) == arguments(getattr(cupy, name))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_arguments_of_cupys(cupy, name):
    assert arguments(getattr(cp.ndarray, name)) == arguments(getattr(cupy.ndarray, name))


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_cuda_takes_the_arguments_of_cupys(cupy, name):
    mine, real = getattr(cp.cuda, name), getattr(cupy.cuda, name)
    assert arguments(mine) == arguments(real)
    methods = {n for n, f in vars(mine).items() if not n.startswith("_")}
    for method in methods:
        assert hasattr(real, method), method
        if inspect.isfunction(vars(mine)[method]):
            assert arguments(vars(mine)[method]) == arguments(getattr(real, method)), method


def test_functions_of_cuda_take_the_arguments_of_cupys(cupy):
    found = {name: f for name, f in vars(cp.cuda).items() if inspect.isfunction(f)}
    assert len(found) > 3
    for name, f in found.items():
        assert arguments(f) == arguments(getattr(cupy.cuda, name)), name


def test_ufuncs_are_ufuncs_and_take_no_more_than_cupys(cupy):
    for name in cp.UFUNCS:
        assert isinstance(getattr(cupy, name), cupy.ufunc)
        assert getattr(cupy, name).nin == getattr(np, name).nin
    with pytest.raises(TypeError, match="where"):
        cp.exp(cp.ones(2), where=cp.ones(2, bool))
    with pytest.raises(TypeError, match="number of arguments"):
        cp.maximum(cp.ones(2))


def test_kernels_take_no_more_than_cupys(cupy):
    module = re.match(r"RawModule\((.*)\)", cupy.RawModule.__doc__)[1]
    for name in inspect.signature(cp.RawModule).parameters:
        assert re.search(rf"\b{name}=", module)
    assert hasattr(cupy.RawKernel, "max_dynamic_shared_size_bytes")
    with pytest.raises(TypeError, match="expected tuple"):
        cp.RawModule(code="", options=["-DX=1"])


@pytest.mark.skipif(not compiler(), reason="wants g++")
def test_what_a_restrict_pointer_writes_is_nobody_elses():
    """A compiler may read it early, and through the read-only cache."""
    head, body = 'extern "C" __global__ void ', "{ y[threadIdx.x] = x[threadIdx.x]; }"
    module = cp.RawModule(code=f"""
        {head} alone(const float* __restrict__ x, float* __restrict__ y) {body}
        {head} either(const float* x, float* y) {body}""")
    alone, either = map(module.get_function, ("alone", "either"))
    a, b = cp.arange(8, dtype="float32"), cp.zeros(4, "float32")
    for x, y in ((a[:4], a[4:]), (a[:4], b)):
        alone((1,), (4,), (x, y))
        assert y.tolist() == [0, 1, 2, 3]
    for x, y in ((b, b), (a[2:6], a[:4])):
        with pytest.raises(RuntimeError, match="alone: x and y overlap, .* __restrict__"):
            alone((1,), (4,), (x, y))
    either((1,), (4,), (b, b))


def test_operators_are_cupys(cupy):
    names = [n for n in vars(cp.ndarray) if n.startswith("__") and n not in ("__dict__",
                                                                              "__weakref__")]
    assert len(names) > 50
    assert [name for name in names if not hasattr(cupy.ndarray, name)] == []


def test_what_is_not_listed_is_not_there():
    a = cp.ones(3)
    for name in ("kron", "cumsum", "mean", "sum", "linalg", "random"):
        assert not hasattr(cp, name)
    for name in ("byteswap", "cumsum", "std", "sort", "dot", "__index__", "base", "ctypes"):
        assert not hasattr(a, name)
    for wrong in (lambda: a.sum(where=a), lambda: a.max(initial=0), lambda: a.item(0),
                  lambda: cp.zeros(3, like=a), lambda: cp.array(a, device="cpu"),
                  lambda: cp.full(3, 1, device="cpu"), lambda: a.copy("C", 1)):
        with pytest.raises(TypeError):
            wrong()


# -- dtypes ------------------------------------------------------------------------------


def kind_score(kind):
    """As CuPy's _get_kind_score."""
    for score, kinds in enumerate([np.bool_, (np.integer, int), (np.inexact, float)]):
        if issubclass(kind, kinds):
            return score
    return 3


def by_cupys_table(ufunc, operands):
    """The dtype that CuPy's ufunc would give, None for an error.

    Python's int and float are weak, if no array is of a lower kind; its bool is not.
    """
    types, weak = [], []
    for o in operands:
        python = type(o) in (int, float)
        types.append(np.dtype(type(o)) if python or type(o) is bool else np.dtype(o.dtype))
        weak.append(type(o) if python else False)
    strong = max((kind_score(t.type) for t, w in zip(types, weak, strict=True) if not w),
                 default=-1)
    scalar = max((kind_score(w) for w in weak if w), default=-1)
    if not strong >= scalar >= 0:
        weak = [False] * len(types)
    try:
        op = ufunc._ops._guess_routine_from_in_types(tuple(types), tuple(weak))
        if op is None:
            return None
        if op.error_func:
            op.error_func()
        return op.out_types[0]
    except TypeError:
        return None


def dtype_of(f, *operands):
    try:
        return f(*operands).dtype
    except TypeError:
        return None


@pytest.mark.parametrize("name", OPERATORS)
def test_promotion_is_cupys(cupy, name):
    ufunc, f = getattr(cupy, OPERATORS[name]), getattr(operator, name)
    arrays = [cp.ones(2, numpys(d)) for d in DTYPES]
    for a in arrays:
        for b in [*arrays, *NUMBERS]:
            if name == "pow" and a.dtype == bool and type(b) is int:
                continue  # CuPy squares instead
            for operands in ((a, b), (b, a)):
                assert dtype_of(f, *operands) == by_cupys_table(ufunc, operands), operands


@pytest.mark.parametrize("name", [*cp.UFUNCS, *UNARY])
def test_functions_give_cupys_dtypes(cupy, name):
    ufunc = getattr(cupy, UNARY.get(name, name))
    f = getattr(operator, name) if name in UNARY else getattr(cp, name)
    for d in DTYPES:
        a = cp.ones(2, numpys(d))
        assert dtype_of(f, *[a] * ufunc.nin) == by_cupys_table(ufunc, [a] * ufunc.nin)


@pytest.mark.parametrize("name, want", [
    ("sum", "int64 int64 uint64 int64 int64 uint64 float16 float32 float64 bfloat16"),
    ("mean", "float64 float64 float64 float64 float64 float64 float16 float32 float64 bfloat16"),
    ("max", " ".join(DTYPES)), ("min", " ".join(DTYPES)),
    ("any", " ".join(["bool"] * 10)), ("all", " ".join(["bool"] * 10)),
    ("argmax", " ".join(["int64"] * 9)),
])
def test_reductions_give_cupys_dtypes(name, want):
    for d, w in zip(DTYPES, want.split(), strict=False):
        y = getattr(cp.ones((2, 3), numpys(d)), name)(axis=1)
        assert (y.dtype.name, y.shape) == (w, (2,))


def test_what_cupy_has_no_bfloat16_for_is_refused():
    a = cp.ones(4, make(0, "bfloat16").dtype)
    for f in (a.argmax, lambda: cp.where(a > 0, a, a), lambda: cp.argsort(a),
              lambda: a.reshape(2, 2, 1) @ a.reshape(2, 1, 2)):
        with pytest.raises(TypeError):
            f()


def test_sums_of_16_bits_are_rounded_once():
    for dtype in ("float16", "bfloat16"):
        assert float(cp.ones(5000, make(0, dtype).dtype).sum()) == make(5000, dtype)


# -- results -----------------------------------------------------------------------------


def test_every_result_stays_on_the_gpu():
    a = cp.asarray(np.arange(6.0).reshape(2, 3))
    for f in (lambda: a[1, 2], lambda: a[0, 0] + 1, a.sum, a.max, a.mean, a.all, a.argmax,
              lambda: a.sum(axis=0)[1], lambda: cp.exp(a[0, 0]), lambda: np.float64(2) * a[0, 0],
              lambda: cp.asarray(3.0), lambda: cp.full((), 2), lambda: a[0] @ a[0],
              lambda: -a.min(), lambda: a[0, 0] == 0):
        y = f()
        assert type(y) is cp.ndarray and y.shape == ()
    assert a.T.tolist() == [[0, 3], [1, 4], [2, 5]] and (len(a), a.size, a.nbytes) == (2, 6, 48)
    assert [type(row) for row in a] == [cp.ndarray] * 2
    with pytest.raises(TypeError, match="0-d"):
        iter(a.sum())


def test_an_element_is_a_view():
    a = cp.zeros((2, 3))
    one, row, turned = a[1, 2], a[0], a.T[::-1]
    one.fill(5)
    row += 1
    turned[2, 0] = 9
    assert a.tolist() == [[9, 1, 1], [0, 0, 5]]
    assert one.data.mem.ptr == a.data.mem.ptr and one.data.ptr == a.data.ptr + 5 * 8


def test_a_list_or_numpys_array_is_no_index():
    a = cp.arange(5)
    for key in ([1, 2], np.array([1, 2]), True, "x", 1.0):
        with pytest.raises(TypeError, match="as an index"):
            a[key]
    assert a[cp.asarray([3, 1])].tolist() == [3, 1]
    assert a[a > 2].tolist() == [3, 4]
    a[a > 2] = 0
    a[cp.asarray([0, 1])] = cp.asarray([7, 8])
    assert a.tolist() == [7, 8, 2, 0, 0]
    assert a[None, 1:, ...].shape == (1, 4)


@pytest.mark.parametrize("f, order", [  # of an array in Fortran's order
    (lambda a: a + 1, "C"), (lambda a: a + a, "C"), (lambda a: -a, "C"), (lambda a: a > 0, "C"),
    (lambda a: cp.exp(a), "C"), (lambda a: cp.where(a > 0, a, a), "C"), (lambda a: a.copy(), "C"),
    (lambda a: a.sum(axis=0), "C"), (lambda a: cp.concatenate([a, a]), "C"),
    (lambda a: cp.stack([a, a]), "C"), (lambda a: a[cp.asarray([0, 1])], "C"),
    (lambda a: a.reshape(4, 3), "C"), (lambda a: a.ravel(), "C"),
    (lambda a: cp.ascontiguousarray(a), "C"), (lambda a: a.astype("float32"), "F"),
    (lambda a: a.astype("float32", "C"), "C"), (lambda a: a.copy("K"), "F"),
    (lambda a: cp.array(a), "F"), (lambda a: cp.array(a, order="C"), "C"),
    (lambda a: cp.zeros_like(a), "F"), (lambda a: cp.empty_like(a), "F"),
    (lambda a: cp.ones_like(a, order="C"), "C"), (lambda a: cp.asarray(a.get(order="F")), "F"),
    (lambda a: cp.array(a.get(order="F")[:, 1:]), "F"), (lambda a: a @ a.T, "C"),
    (lambda a: cp.argsort(a), "C"),
])
def test_the_order_of_a_result_is_cupys(f, order):
    a = cp.asarray(np.arange(12.0).reshape(4, 3).T)
    assert a.flags.f_contiguous and not a.flags.c_contiguous
    y, want = f(a).flags, {"C": "c_contiguous", "F": "f_contiguous"}[order]
    assert getattr(y, want)


def test_astype_returns_the_array_itself_where_cupys_does():
    a = cp.asarray(np.arange(12.0).reshape(4, 3).T)
    assert a.astype(float, copy=False) is a is a.astype(float, "F", copy=False)
    assert a.astype(float, "C", copy=False) is not a and a.astype(float) is not a
    assert cp.asarray(a) is a and cp.array(a) is not a and cp.asarray(a, "float32") is not a
    assert cp.ascontiguousarray(a.T) is not None and cp.ascontiguousarray(a.sum()).shape == (1,)
    with pytest.raises(TypeError, match="not supported"):
        a.astype(float, casting="safe")
    with pytest.raises(ValueError, match="Unsupported dtype"):
        a.astype("U3")


def test_what_nobody_wrote_is_not_zero_by_luck():
    a = cp.ones(3)
    for y in (cp.empty(3), cp.empty_like(a), cp.empty((2, 0, 3)), cp.empty(3, "float16")):
        assert np.isnan(y.get()).all()
    assert (cp.empty(3, "int32").get() == -1).all() and cp.empty(3, bool).all()


def test_mixing_with_numpy_is_refused():
    gpu, cpu = cp.ones(3), np.ones(3)
    for mix in (lambda: np.asarray(gpu), lambda: gpu + cpu, lambda: cpu + gpu,
                lambda: np.add(cpu, gpu), lambda: cp.where(cpu, gpu, gpu),
                lambda: cp.concatenate([gpu, cpu]), lambda: cp.stack([gpu, cpu]),
                lambda: operator.iadd(gpu, cpu), lambda: gpu == cpu, lambda: gpu @ cpu,
                lambda: cpu @ gpu, lambda: cp.array([gpu, gpu]), lambda: cp.exp(cpu)):
        with pytest.raises(TypeError):
            mix()
    for assign in (lambda: operator.setitem(gpu, 0, cpu), lambda: gpu.fill(cpu),
                   lambda: operator.setitem(gpu, slice(None), [1, 2, 3])):
        with pytest.raises(ValueError, match="non-scalar"):
            assign()
    same = gpu
    gpu += 2 * gpu.sum()  # a 0-d array, still on the GPU
    assert gpu is same and gpu.get().tolist() == [7, 7, 7]


def test_a_tensor_computes_by_itself():
    y = cp.ones(3) + gpc.Tensor(cp.ones(3))
    assert type(y) is gpc.Tensor and type(y.data) is cp.ndarray


def test_truth_and_numbers():
    a = cp.arange(3)
    assert bool(a[1]) and not bool(a[0]) and float(a[2]) == int(a[2]) == a[2].item() == 2
    with pytest.raises(ValueError, match="ambiguous"):
        bool(a)
    with pytest.raises(ValueError, match="size 1"):
        a.item()
    with pytest.raises(TypeError):
        operator.index(a[0])
    with pytest.raises(TypeError):
        hash(a)
    with pytest.raises(OverflowError):
        cp.ones(2, "int8") + 300


def test_copies():
    a = cp.arange(3.0)
    for twin in (copy.deepcopy(a), pickle.loads(pickle.dumps(a)), a.copy()):
        twin += 1
        assert twin.tolist() == [1, 2, 3]
    assert a.tolist() == [0, 1, 2] and repr(a) == repr(a.get())
    b = np.arange(3.0)
    on_gpu = cp.asarray(b)
    b[:] = 9  # it was copied
    assert on_gpu.tolist() == [0, 1, 2]


def test_arguments_that_the_stand_in_does_not_know_are_refused_loudly():
    a = cp.ones((2, 2))
    for f in (lambda: a.sum(out=a), lambda: cp.exp(a, out=a), lambda: a.get(out=np.ones(2)),
              lambda: a.reshape(4, order="F"), lambda: cp.array(a, ndmin=3), lambda: cp.where(a)):
        with pytest.raises(NotImplementedError, match="stand-in"):
            f()


def test_memory_begins_where_cupys_does():
    a = cp.empty(5, "int8")
    assert a.data.ptr % 512 == 0 and fake_ndarray.new((3,), "int8").data.ptr % 512 == 0
