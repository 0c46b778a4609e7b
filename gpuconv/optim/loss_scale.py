"""Loss scaling: gradients too small for float16 are scaled up, and divided again.

    loss * scale                       is differentiated: all gradients are scale times larger
    all gradients finite:              the step is made, with gradients / scale
        counter = counter + 1          at ``interval`` scale = growth * scale, counter = 0
    else:                              the step is skipped: no bit changes
        scale = backoff * scale, counter = 0

float16 has no numbers between 0 and 6e-8, and none above 65504; a scale that grows until a gradient
overflows keeps the gradients as far from 0 as possible. Scales are powers of two, so that neither
the product nor the quotient rounds. bfloat16 has the range of float32 and needs no loss scale.

On a GPU scale and counter stay in device memory, where kernels read them: the host does not wait,
and a captured step may contain all of it.

    loss.backward(scaler.scale)    for a loss () in float32, else scaler.multiply(loss).backward()
    scaler.check()                 then clip_grad_norm, optimizer.step, ema.update(optimizer)

The forward pass of a step that is skipped has changed buffers already: running statistics may hold
infinities. ``nn.SavedBuffers`` puts them back, as ``fit`` does; a loop of one's own is

    saved = nn.SavedBuffers(model)                before the forward pass
    loss = ...; loss.backward(scaler.scale)
    scaler.check()
    saved.put_back(optimizer.control[2])          if the step is skipped
    optimizer.step(); ema.update(optimizer)

Source: Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.autograd import Tensor
from gpuconv.backend import (
    FLOATS,
    Array,
    array_device,
    asarray,
    cupy,
    device_name,
    get_array_module,
    is_array,
    is_gpu,
)
from gpuconv.checks import check_count, check_kind, check_number, short, type_name
from gpuconv.optim.flat import cpu_chunks, reduction_blocks
from gpuconv.optim.optimizer import MULTIPLIER, SKIP, Optimizer
from gpuconv.state import matching

LEAST, MOST = 2.0**-126, 2.0**127  # powers of two that float32 holds in full


class LossScale:
    """Loss scale that adapts to the gradients.

    Args:
        optimizer: of the parameters, all on one device. ``check`` sets its multiplier of gradients
            to 1 / scale, and its skip flag, until the next ``check``.
        scale: initial scale, a power of two.
        growth: factor of the scale after ``interval`` steps without an overflow.
        backoff: factor of the scale after an overflow.
        interval: steps.

    With growth=1 and backoff=1 the scale is constant; steps that overflow are still skipped.

    Attributes:
        scale: (), float32, on the parameters' device: scale of the next backward pass.
        counter: (), int64, on the same device: steps since the last change or overflow.

    Raises:
        ValueError: a number is no power of two, growth < 1, backoff > 1, interval < 1, or the
            parameters are on several devices.

    >>> from gpuconv.autograd import Parameter
    >>> from gpuconv.optim import SGD
    >>> p = Parameter(np.float16([1.0])); sgd = SGD([p], lr=0.5)
    >>> scaler = LossScale(sgd, 4.0)
    >>> p.grad[...] = 2; scaler.check(); sgd.step(); p.data  # 1 - 0.5 * 2 / 4
    array([0.75], dtype=float16)
    >>> p.grad[...] = np.inf; scaler.check(); sgd.step(); p.data, scaler.scale
    (array([0.75], dtype=float16), array(2., dtype=float32))
    """

    def __init__(self, optimizer: Optimizer, scale: float = 65536.0, growth: float = 2.0,
                 backoff: float = 0.5, interval: int = 2000):
        check_kind("LossScale", "optimizer", optimizer, Optimizer)
        optimizer.check_holds("LossScale")
        for name, value in (("scale", scale), ("growth", growth), ("backoff", backoff)):
            if not _is_power_of_two(check_number("LossScale", name, value)):
                raise ValueError(f"LossScale: {name} is {short(value)}, wanted a power of two")
        check_number("LossScale", "growth", growth, least=1)
        check_number("LossScale", "backoff", backoff, most=1)
        control = optimizer.control
        self.optimizer, self.growth, self.backoff = optimizer, float(growth), float(backoff)
        self.interval = check_count("LossScale", "interval", interval, most=2**31 - 1)
        with array_device(control):
            xp = get_array_module(control)
            self.scale, self.counter = xp.zeros((), np.float32), xp.zeros((), np.int64)
            self.scale.fill(scale)

    def multiply(self, y: Any) -> Any:
        """Return a loss, or its gradient, times the scale: an array or Tensor of any shape.

        Raises:
            TypeError: y is neither, or its dtype is not float32 or float64: in 16 bits the scale
                might overflow.
        """
        array = is_array(y) or isinstance(y, (Tensor, np.generic))
        if not array or y.dtype.name not in FLOATS or y.dtype.itemsize < 4:
            got = str(y.dtype)[:60] if array else type_name(y)
            raise TypeError(f"LossScale.multiply wants a loss of float32 or float64, got {got}")
        with array_device(self.scale):
            return y * self.scale.astype(y.dtype)

    def check(self) -> None:
        """Check the gradients for inf and NaN; set the skip flag and the next scale.

        Writes the multiplier and "skip" into every row of ``optimizer.table``. Frozen parameters do
        not count.

        Raises:
            RuntimeError: a ``grad`` was replaced by hand, or the parameters have been released.
        """
        self.optimizer.check_holds("LossScale: check")
        flats = self.optimizer.all_flats()
        parts = [flat.grad[part] for flat in flats for part in flat.active()]
        with array_device(self.scale):
            (self._check_gpu if is_gpu(self.scale) else self._check_cpu)(parts)

    def _check_cpu(self, parts: list[np.ndarray]) -> None:
        overflow = not all([finite(g) for g in parts])
        clean = 0 if overflow else int(self.counter) + 1
        grow, now = clean >= self.interval, float(self.scale)
        self.optimizer.table[:, MULTIPLIER] = 1 / now
        self.optimizer.table[:, SKIP] = overflow
        scale = now * (self.backoff if overflow else self.growth if grow else 1)
        if LEAST <= scale <= MOST:
            self.scale[...] = scale
        self.counter[...] = 0 if grow else clean

    def _check_gpu(self, parts: list[Array]) -> None:
        """Do what ``_check_cpu`` does with kernels/optim/loss_scale.cu."""
        slices = list(map(reduction_blocks, parts))
        flags = cupy().empty(sum(slices), np.int32)
        start = 0
        for g, S in zip(parts, slices, strict=True):
            kernels.kernel("optim/loss_scale.cu", "loss_scale_find", T=g.dtype,
                           BLOCK=kernels.BLOCK)(
                S * kernels.BLOCK, g, flags[start : start + S], g.size, S)
            start += S
        T, table = self.optimizer.all_flats()[0].data.dtype, self.optimizer.table
        kernels.kernel("optim/loss_scale.cu", "loss_scale_update", T=T, BLOCK=kernels.BLOCK)(
            kernels.BLOCK, flags, self.scale, self.counter, table, self.growth, self.backoff,
            self.interval, start, len(table))

    def state_dict(self) -> dict[str, Array]:
        """Return "scale" and "counter", the live arrays."""
        return {"scale": self.scale, "counter": self.counter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in a ``state_dict``.

        Raises:
            ValueError: names, shapes, dtypes or values do not fit; lists them, and changes nothing.
        """
        mine, wrong = self.state_dict(), []
        found, *_ = matching("LossScale: load_state_dict", mine, state)
        if not _is_power_of_two(float(found["scale"])):
            wrong.append(f"scale is {float(found['scale'])}, wanted a power of two")
        if int(found["counter"]) < 0:
            wrong.append(f"counter is {int(found['counter'])}, wanted at least 0")
        if wrong:
            raise ValueError("LossScale: load_state_dict: " + "; ".join(wrong))
        for name, array in mine.items():
            with array_device(array):
                array[...] = asarray(found[name], device_name(array))


def finite(g: np.ndarray) -> bool:
    """Return whether all of g (n,) is finite."""

    def is_finite(chunk: slice) -> bool:
        return bool(np.isfinite(g[chunk], out=memory.empty(chunk.stop - chunk.start, bool)).all())

    return all(threads.each(is_finite, cpu_chunks(g.size)))


def _is_power_of_two(x: float) -> bool:
    return LEAST <= x <= MOST and math.frexp(x)[0] == 0.5
