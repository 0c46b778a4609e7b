"""Matrix products, and the linear layer."""

from gpuconv.ops.matmul.linear import Linear, linear
from gpuconv.ops.matmul.matmul import MatMul, gemm, matmul

__all__ = [
    "Linear", "MatMul", "gemm", "linear", "matmul",
]
