"""Augmentation: a batch of bytes, cropped, mirrored, normalised."""

import numpy as np
from harness import Work, measure, one_layout_float32

from gpuconv.data import Augment, augment_batch
from gpuconv.data.augment import image_moves

N, B, PAD = 10_000, 128, 4
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


@one_layout_float32
def test_augment(benchmark, library, rng):
    images = rng.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    index = rng.permutation(N)[:B].astype(np.int32)
    oh, ow, flip = image_moves(index, (0, 0), 0, Augment(pad=PAD))  # PyTorch gets them for nothing
    given = [library.array(a) for a in (oh, ow, flip)] if library.torch else ()
    work = Work(
        "augment 128x32x32x3", dict(images=images, index=index),
        ours=lambda images, index: augment_batch(images, index, mean=MEAN, std=STD,
                                                 augment=Augment(pad=PAD)),
        torch=lambda images, index: torch_augment(images, index.long(), *given),
        traffic=B * 32 * 32 * 3 * 5, images=B)
    measure(benchmark, work, library)


def torch_augment(images, index, oh, ow, flip):
    """(B, 3, 32, 32), whole batch at a time."""
    import torch
    here = images.device
    h, w = (torch.arange(32, device=here) for _ in range(2))
    rows = h + oh.long()[:, None] + PAD                                             # (B, 32)
    columns = torch.where(flip[:, None], 31 - w, w) + ow.long()[:, None] + PAD      # (B, 32)
    padded = torch.nn.functional.pad(images[index], (0, 0, PAD, PAD, PAD, PAD))     # (B, 40, 40, 3)
    batch = torch.arange(len(index), device=here)[:, None, None]
    taken = padded[batch, rows[:, :, None], columns[:, None]]                       # (B, 32, 32, 3)
    mean, std = (torch.tensor(v, device=here) for v in (MEAN, STD))
    return ((taken.float() / 255 - mean) / std).permute(0, 3, 1, 2)
