"""Copies of a module's buffers, to put back what a forward pass has written into them."""

from gpuconv.backend import Array
from gpuconv.nn.module import Module
from gpuconv.undo import copied, put_back


class SavedBuffers:
    """Copies of all buffers of a module: running statistics, counters, and those of its user.

    A forward pass in training changes buffers before anybody knows whether the step counts::

        saved = SavedBuffers(model)                 before the forward pass
        loss.backward(scaler.scale); scaler.check()
        saved.put_back(optimizer.control[2])        where the step is left out
        optimizer.step()

    Args:
        module: where it is now.

    >>> import numpy as np
    >>> from gpuconv.nn import BatchNorm2d
    >>> layer = BatchNorm2d(1); saved = SavedBuffers(layer)
    >>> _ = layer(np.float32([[np.inf], [1]])); layer.running_mean
    array([nan], dtype=float32)
    >>> saved.put_back(); layer.running_mean, int(layer.num_batches_tracked)
    (array([0.], dtype=float32), 0)
    """

    def __init__(self, module: Module):
        self.owners = [(m, name) for m in module.modules() for name in m._buffer_names]
        self.pairs = copied(getattr(m, name) for m, name in self.owners)

    def put_back(self, skip: Array | None = None) -> None:
        """Write the copies back.

        Args:
            skip: (), float64, beside the buffers: nothing is written where it is 0, as "skip" in
                the ``control`` of an optimiser is unless its step is left out. None: write.
        """
        pairs = {}
        for (m, name), (array, copy) in zip(self.owners, self.pairs, strict=True):
            now = getattr(m, name)
            if now is not array and (now.shape, now.dtype) != (copy.shape, copy.dtype):
                if skip is None:
                    setattr(m, name, copy)
            else:  # forward may have put another array in its place
                pairs[id(now)] = now, copy
        put_back(pairs.values(), skip)
