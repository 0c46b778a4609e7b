"""kernels/common/pack.cuh: how many elements make 16 bytes, and where they may be read at once."""

import numpy as np
import pytest

from gpuconv import kernels

CUDA = """
#include <cuda_fp16.h>
extern "C" __global__ void probe(const float* x, int* aligned, int* sizes)
{
    for (int i = 0; i < 12; ++i) aligned[i] = is_aligned(x + i);
    sizes[0] = Pack<double>::V;
    sizes[1] = Pack<float>::V;
    sizes[2] = Pack<__half>::V;
    sizes[3] = sizeof(Pack<float>);
    sizes[4] = alignof(Pack<__half>);
}
"""


def test_packs_are_16_bytes_at_multiples_of_16(cp):
    code = kernels.source("common/pack.cuh") + CUDA
    x, aligned, sizes = cp.zeros(12, "float32"), cp.zeros(12, "int32"), cp.zeros(5, "int32")
    cp.RawModule(code=code).get_function("probe")((1,), (1,), (x, aligned, sizes))
    assert sizes.get().tolist() == [2, 4, 8, 16, 16]
    starts = x.data.mem.ptr + 4 * np.arange(12)  # CuPy's are multiples of 512
    np.testing.assert_array_equal(aligned.get(), starts % 16 == 0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_new_arrays_are_aligned(cp, dtype):
    assert all(cp.empty(n, dtype).data.mem.ptr % 16 == 0 for n in (1, 3, 1000))
