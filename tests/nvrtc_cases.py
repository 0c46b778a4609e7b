"""Compile-time constants that every kernel file can be compiled with, at the least.

What is compiled besides comes from the launches themselves: tests/launches.py.

T, A and I come by themselves, in all combinations. test_kernels demands that each file in kernels/
stands here with exactly the constants that its source reads.
"""

import numpy as np

from gpuconv import backend, kernels
from gpuconv.ops.elementwise import ACTIVATIONS, FUNCTIONS

WINDOW = dict(R=3, S=2, SH=2, SW=1, DH=1, DW=2, PT=1, PL=0)
SOLID = dict(WINDOW, DH=1, DW=1)
FULL = dict(FULL_R=5, FULL_S=2, CUT_R=1, CUT_S=0)
TENSOR = dict(WINDOW, C=24, GRADIENT=0, UNIT=16, WIDE=1, BIAS=1, RESIDUAL=0, POOL=0, MOMENTS=0,
              ACTIVATION="none", BM=64, BN=64, BK=32, WM=32, WN=32, STAGES=3)
SIMT = dict(WINDOW, BM=128, BN=64, TM=8, TN=8, LX=4, LW=4, LY=4, TURNED=0,
            ACTIVATION="none")
SMALL = dict(BM=64, BN=32, TM=4, TN=4, LX=1)
WEIGHT = dict(BM=64, BN=32, BK=32, WM=32, WN=16, STAGES=3, PLAIN=0, GY_UNIT=16,
              O=np.dtype("float32"))
GEMM = dict(BM=64, BN=32, TM=4, TN=4, LA=1, LB=1, LY=2, O=np.dtype("float32"),
            ACTIVATION="none")
BYTE, INT = np.dtype("uint8"), np.dtype("int32")
PACK = "as many elements as 16 bytes hold"  # of V: the widest access, which takes most registers

CASES = {  # file: its configurations
    "elementwise/activation.cu": [dict(ACTIVATION=name) for name in FUNCTIONS],
    "common/accumulate.cu": [{}],
    "optim/adam.cu": [dict(MASTER=0), dict(MASTER=1)],
    "data/augment.cu": [dict(C=1), dict(C=3), dict(C=8)],
    "pool/avg_pool.cu": [dict(SOLID, PB=1, PR=0, INCLUDE=1, **FULL),
                    dict(SOLID, PB=0, PR=1, INCLUDE=0, **FULL)],
    "norm/batch_norm.cu": [dict(BLOCK=256, V=1, ACTIVATION="none"),
                           *(dict(BLOCK=256, V=PACK, ACTIVATION=name) for name in ACTIVATIONS)],
    "elementwise/bias_relu.cu": [dict(BLOCK=256, V=1), dict(BLOCK=256, V=PACK)],
    "optim/clip.cu": [dict(BLOCK=256)],
    "optim/step_state.cu": [{}],
    "conv/conv_rotate_filters.cu": [{k: v for k, v in WINDOW.items() if k not in ("PT", "PL")}],
    "conv/conv_mma.cu": [dict(TENSOR, POOL=1, MOMENTS=1), dict(TENSOR, GRADIENT=1, UNIT=4),
                         *(dict(TENSOR, RESIDUAL=1, ACTIVATION=name, WIDE=0)
                           for name in ACTIVATIONS)],
    "conv/conv_depthwise.cu": [dict(WINDOW, ACTIVATION=name, BLOCK=256) for name in ACTIVATIONS],
    "conv/conv_simt.cu": [dict(SIMT, **SMALL | dict(LW=1, LY=2)),
                          dict(SIMT, **SMALL | dict(TURNED=1, LW=2, LY=2)),
                          *(dict(SIMT, **SMALL | dict(LW=1, LY=2, ACTIVATION=name))
                            for name in ACTIVATIONS)],
    "conv/conv_simt_wgrad.cu": [dict(WINDOW, LY=2, **SMALL), dict(WINDOW, LY=1, **SMALL)],
    "reduce/column_sums.cu": [dict(BLOCK=256, V=PACK, O=np.dtype("float32")),
                       dict(BLOCK=256, V=1, O=np.dtype("float64"))],
    "conv/conv_mma_wgrad.cu": [dict(WEIGHT, X_UNIT=16), dict(WEIGHT, X_UNIT=4, PLAIN=1)],
    "common/copy.cu": [{}],
    "elementwise/dropout.cu": [{}],
    "optim/ema.cu": [dict(W=np.dtype("int64"), MASTER=0), dict(W=np.dtype("int64"), MASTER=1)],
    "pool/global_pool.cu": [dict(MARK=BYTE, SAVE=1, BLOCK=256), dict(MARK=INT, SAVE=0, BLOCK=256)],
    "conv/im2col.cu": [WINDOW],
    "matmul/gemm.cu": [*(dict(GEMM, A_TRANSPOSED=a, B_TRANSPOSED=b) for a in (0, 1)
                         for b in (0, 1)),
                       *(dict(GEMM, A_TRANSPOSED=0, B_TRANSPOSED=0, ACTIVATION=name)
                         for name in ACTIVATIONS)],
    "optim/loss_scale.cu": [dict(BLOCK=256)],
    "pool/max_pool.cu": [dict(WINDOW, MARK=BYTE, SAVE=1), dict(WINDOW, MARK=INT, SAVE=0)],
    "optim/muon.cu": [dict(NESTEROV=1, MASTER=1), dict(NESTEROV=0, MASTER=0)],
    "optim/newton_schulz.cu": [{}],
    "shape/pad.cu": [dict(MODE=0), dict(MODE=1), dict(MODE=2), dict(MODE=3)],
    "optim/sgd.cu": [dict(MOMENTUM=m, NESTEROV=n, MASTER=master)
               for m, n in [(0, 0), (1, 0), (1, 1)] for master in (0, 1)],
    "data/shuffle.cu": [{}],
    "loss/softmax_cross_entropy.cu": [dict(BLOCK=256, WARPS=1, LABEL=INT),
                                 dict(BLOCK=256, WARPS=8, LABEL=np.dtype("int64"))],
}


def options(file, case, T, index):
    """Compiler options of one of CASES for a dtype and an index type, where the file has one."""
    dtype = backend.float_dtype(T)
    case = {name: 16 // dtype.itemsize if value is PACK else value for name, value in case.items()}
    more = {"I": np.dtype(index)} if "CFG_I" in kernels.source(file) else {}
    return kernels.defines(**case, **more, T=dtype, A=backend.accumulator(dtype))
