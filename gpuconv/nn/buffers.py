"""Copies of a module's buffers, to restore them after a forward pass."""

from gpuconv.backend import Array, array_device, get_array_module, is_gpu
from gpuconv.checks import check_kind
from gpuconv.nn.module import Module
from gpuconv.undo import copied, put_back


class SavedBuffers:
    """Copies of all buffers of a module: running statistics, counters, and the user's own.

    A forward pass in training changes buffers before it is known whether the step is skipped::

        saved = SavedBuffers(model)                 before the forward pass
        loss.backward(scaler.scale); scaler.check()
        saved.put_back(optimizer.control[2])        if the step is skipped
        optimizer.step()

    Args:
        module: on its device.

    >>> import numpy as np
    >>> from gpuconv.nn import BatchNorm2d
    >>> layer = BatchNorm2d(1); saved = SavedBuffers(layer)
    >>> _ = layer(np.float32([[np.inf], [1]])); layer.running_mean
    array([nan], dtype=float32)
    >>> saved.put_back(); layer.running_mean, int(layer.num_batches_tracked)
    (array([0.], dtype=float32), 0)
    """

    def __init__(self, module: Module):
        check_kind("SavedBuffers", "module", module, Module)
        self.names = [(m, m._buffer_names) for m in module.modules()]
        self.owners = [(m, name) for m, names in self.names for name in names]
        self.pairs = copied(getattr(m, name) for m, name in self.owners)

    def put_back(self, skip: Array | None = None) -> None:
        """Restore the buffers: the same arrays with the same values.

        Args:
            skip: (), float64, on the buffers' device: nothing changes if it is 0, as "skip" in the
                ``control`` of an optimiser is unless the step is skipped. None: restore. A GPU
                reads it itself; there a buffer that forward has bound to another array stays in an
                array of its own.
        """
        if skip is not None and not is_gpu(skip):
            if not skip:
                return
            skip = None
        if skip is None:
            for m, names in self.names:
                if m._buffer_names != names:  # forward has registered more
                    for name in set(m._buffer_names) - set(names):
                        delattr(m, name)
                    m._buffer_names = names
        for (m, name), (array, copy) in zip(self.owners, self.pairs, strict=True):
            now = getattr(m, name)
            if now is array:
                continue
            if skip is None:
                setattr(m, name, array)
            elif (now.shape, now.dtype) == (copy.shape, copy.dtype):
                with array_device(now):
                    setattr(m, name, get_array_module(now).where(skip != 0, copy, now))
        put_back(self.pairs, skip)
