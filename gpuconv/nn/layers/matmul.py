"""The linear layer."""

import numpy as np

from gpuconv.autograd import Parameter, Tensor
from gpuconv.nn import init
from gpuconv.nn.module import Module
from gpuconv.nn.sizes import positive
from gpuconv.ops.checks import check_precision
from gpuconv.ops.matmul import linear


class Linear(Module):
    """y = x w^T + b.

    Args:
        in_features: C, of x (N, C).
        out_features: K, of y (N, K).
        bias: add b?
        precision: of float32 products on a GPU: "ieee", or "tf32", faster and rounded to 10 bits.

    Attributes:
        weight: (K, C), uniform within 1/sqrt(C) at first.
        bias: (K,), likewise; or None.

    >>> Linear(8, 3)(np.ones((2, 8), "float32")).shape
    (2, 3)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True,
                 precision: str = "ieee"):
        C, K = positive("Linear", in_features=in_features, out_features=out_features)
        check_precision("Linear", precision)
        self.precision = precision
        self.weight = Parameter(np.empty((K, C), "float32"))
        self.bias = Parameter(np.empty(K, "float32")) if bias else None
        init.torch_default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, K)."""
        return linear(x, self.weight, self.bias, precision=self.precision)

    def arguments(self) -> str:
        """In, out, and what is not the default."""
        K, C = self.weight.shape
        changed = [f"{name}={value!r}" for name, value, usual in (
            ("bias", self.bias is not None, True), ("precision", self.precision, "ieee"))
            if value != usual]
        return ", ".join([f"{C}, {K}", *changed])
