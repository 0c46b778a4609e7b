"""Matrix products, and the linear layer."""

from gpuconv.ops.matmul.gemm import gemm
from gpuconv.ops.matmul.linear import Linear, linear
from gpuconv.ops.matmul.matmul import MatMul, matmul

__all__ = [
    "Linear", "MatMul", "gemm", "linear", "matmul",
]
