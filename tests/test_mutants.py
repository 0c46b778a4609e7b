"""The mutator changes what matters, one token at a time, and leaves the rest alone."""

import pathlib
import re

import pytest
from mutants import code, mutants
from mutate import CASES, CONFIGURATIONS, sample

KERNELS = pathlib.Path(__file__).parent.parent / "kernels"
TEXT = '''#include "x.cuh"  // a < b
constexpr int R = CFG_R;                    // window, R > 0
static_assert(R > 0, "no - window");
template <class V> __device__ V twice(V a) { return 2 * a; }
extern "C" __global__ void f(const T* x, T* y, int n)
{
    __shared__ float tile[64];
    for (int i = threadIdx.x; i < n; ++i) y[i] = -x[i];  /* i + 1 */
    __syncthreads();
    const Pack<T> p = reinterpret_cast<const Pack<T>*>(x)[0];
    if (!n || n % 2 == 0) y[0] = (T)(0.5 * min(n, 3));
}
'''


def changes(text):
    return [(m.old, m.new.strip()) for m in mutants(text)]


def test_changes_operators_bounds_indices_and_constants():
    loop = changes(TEXT.splitlines()[7])
    assert loop == [("threadIdx", "blockIdx"), ("<", "<="), ("<", ">="), ("++", "--"),
                    ("]", "+ 1]"), ("-", ""), ("]", "+ 1]")]
    condition = changes(TEXT.splitlines()[10])
    assert [old for old, _ in condition] == [
        "!", "||", "%", "2", "==", "0", "0", "]", "0.5", "*", "min", "3"]
    assert ("||", "&&") in condition and ("min", "max") in condition


def test_leaves_alone_what_does_nothing():
    assert {m.line for m in mutants(TEXT)} == {4, 8, 9, 10, 11}
    assert [old for old, _ in changes(TEXT.splitlines()[3])] == ["2", "*"]
    for text in ("A v[ROWS];", "// a + b", "/* a +\n b */", "(T*)x", "Pack<T>& u", "f(int a, V b)",
                 "map<DEEP / 2>(y);", "Part<V> p;"):
        assert not mutants(text)


def test_a_mutant_differs_in_its_token_alone():
    for m in mutants(TEXT):
        changed = m.of(TEXT)
        assert changed != TEXT and TEXT[m.start : m.end] == m.old
        assert changed.removeprefix(TEXT[: m.start]).removesuffix(TEXT[m.end :]) == m.new
        assert f"{{{m.old} => {m.new.strip()}" in m.shown


def test_comments_do_not_count():
    other = TEXT.replace("/* i + 1 */", "// i").replace("// a < b", "")
    assert code(other) == code(TEXT)
    assert [(m.token, m.old) for m in mutants(other)] == [(m.token, m.old) for m in mutants(TEXT)]


def test_the_seed_decides():
    text = (KERNELS / "conv/im2col.cu").read_text()
    assert mutants(text, 0) == mutants(text, 0) != mutants(text, 1)
    places = [{(m.start, m.old) for m in mutants(text, seed)} for seed in (0, 1)]
    assert places[0] == places[1]  # which change, not where


def test_a_sample_is_drawn_by_its_seed():
    found = mutants(TEXT)
    some = sample("x.cu", found, 5, 0)
    assert len(set(some)) == 5 and some == sorted(some) and set(some) < set(found)
    assert some == sample("x.cu", found, 5, 0) != sample("x.cu", found, 5, 1)
    assert sample("x.cu", found, None, 0) == sample("x.cu", found, 999, 0) == found


@pytest.mark.parametrize("source", sorted(
    f.relative_to(KERNELS).as_posix() for f in KERNELS.rglob("*.cu*")))
def test_every_source_that_a_kernel_uses_is_mutated(source):
    used = {m for f in KERNELS.rglob("*.cu") for m in re.findall('include "(.+?)"', f.read_text())}
    if source.endswith(".cu") or source in used:
        tests, configurations = CASES[source]
        assert all((KERNELS.parent / "tests" / f"test_{t}.py").exists() for t in tests.split())
        assert 1 <= len(configurations) <= CONFIGURATIONS
        assert mutants((KERNELS / source).read_text())
