"""How large the work of the GPU day is; the stand-in makes all of it tiny."""

from typing import Any

from gpu_cases import LARGE, Size

SIZE: Size = LARGE    # of the cases
DTYPES: tuple[str, ...] = ("float32", "float16", "bfloat16", "float64")
TRAIN = 512, 128, 64  # images, of the test, of a batch
NET = ("INPUT 32x32x3 | CONV3-16 BN RELU CONV3-16 RELU POOL2 DROPOUT0.3 | CONV3-32 RELU POOL2 | "
       "FC 64 RELU DROPOUT0.5 | FC 10")
STEPS = 10            # of the training that CPU and GPU both do
FIT: dict[str, Any] = dict(train=10_000, test=2_000, epochs=6, model="cifar_convnet")
SHRINK = 1            # what batches, images and channels of the layers of nets are divided by
LAYERS: int | None = None     # of a net that are timed; None: all
ROUNDS, WARMUP = 20, 5        # of what is timed
TIMED: dict[str, Any] = dict(steps=100, epochs=4, model="cifar_convnet")  # steps that are timed
