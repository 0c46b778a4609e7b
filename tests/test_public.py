"""Every name of the public contract exists, with that signature; importing it is cheap."""

import inspect
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import gpuconv as gpc
from gpuconv.ops.elementwise import FUNCTIONS

SLOW = "cupy scipy rich matplotlib PIL zipfile safetensors threadpoolctl platformdirs ml_dtypes " \
       "torch urllib.request http.client tarfile concurrent.futures".split()

# name: its parameters; one that has a default has it here
SIGNATURES = {
    "get_array_module": "*arrays", "asarray": "x, device='auto'", "to_cpu": "x",
    "to_gpu": "x, number=None", "device_info": "", "seed": "n",
    "Tensor": "data, requires_grad=False",
    "Tensor.backward": "self, gy=None", "Tensor.detach": "self", "Tensor.item": "self",
    "Tensor.numpy": "self", "Parameter": "data, requires_grad=True", "no_grad": "",
    "vjp": "f, *arrays", "value_and_grad": "f",
    "gradcheck": "f, *arrays, eps=1e-06, tol=1e-06, directions=5, seed=0",
    "save": "path, state, metadata=None", "load": "path",
    "ops.im2col": "x, kernel_size, stride=1, padding=0, dilation=1",
    "ops.col2im": "col, input_shape, kernel_size, stride=1, padding=0, dilation=1",
    "ops.conv2d": "x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1, "
                  "padding_mode='zeros', precision='ieee', activation=None, residual=None",
    "ops.max_pool2d": "x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, "
                      "return_indices=False",
    "ops.avg_pool2d": "x, kernel_size, stride=None, padding=0, ceil_mode=False, "
                      "count_include_pad=True",
    "ops.linear": "x, w, b=None, *, precision='ieee', activation=None",
    **{f"ops.{name}": "x" for name in ("relu", "gelu", "sigmoid", "tanh", *FUNCTIONS)},
    "ops.softmax_cross_entropy": "logits, labels, *, label_smoothing=0.0, reduction='mean'",
    "nn.Conv2d": "in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, "
                 "groups=1, bias=True, padding_mode='zeros', precision='ieee'",
    "nn.Linear": "in_features, out_features, bias=True, precision='ieee'",
    "nn.BatchNorm2d": "channels, eps=1e-05, momentum=0.1", "nn.Sequential": "*modules",
    "nn.ModuleList": "modules=()", "nn.Residual": "*body, shortcut=None",
    "nn.Module.parameters": "self", "nn.Module.named_parameters": "self",
    "nn.Module.buffers": "self", "nn.Module.register_buffer": "self, name, array",
    "nn.Module.state_dict": "self", "nn.Module.load_state_dict": "self, state, strict=True",
    "nn.Module.train": "self, mode=True", "nn.Module.eval": "self",
    "nn.Module.to": "self, *targets", "nn.Module.predict": "self, array, batch_size=256",
    "nn.Module.requires_grad_": "self, flag=True",
    "optim.SGD": "params, lr, momentum=0.0, nesterov=False, weight_decay=0.0, master=False",
    "optim.SGD.step": "self", "optim.SGD.zero_grad": "self", "optim.SGD.state_dict": "self",
    "optim.SGD.load_state_dict": "self, state",
    "optim.Adam": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, master=False",
    "optim.AdamW": "params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, "
                   "master=False",
    "optim.clip_grad_norm": "optimizer, max_norm",
    "optim.EMA": "module, decay=0.999, warmup=True",
    "train.Checkpoint": "folder, *, keep=2, minutes=5.0, model=None",
    "train.EarlyStopping": "patience, min_delta=0.0",
    "train.TensorBoard": "folder, every=20", "train.MetricsFiles": "folder", "train.Interrupt": "",
    "train.fit": "model, train, *, test=None, epochs, batch_size, optimizer, schedule=None, "
                 "augment=None, label_smoothing=0.0, clip_norm=None, ema=None, seed=0, "
                 "resume=None, callbacks=(), eager=None, loss_scale=None, reduction='mean', "
                 "drop_last=False, normalize=None",
    "train.evaluate": "model, data, *, batch_size=256, mean=None, std=None",
    "data.cifar10": "root=None, download=False, *, verify=True, progress=None",
    "data.shapes": "train=10000, test=2000, seed=0",
    "data.Loader": "dataset, batch_size, *, shuffle=True, augment=None, seed=0, dtype='float32', "
                   "drop_last=False, mean=None, std=None",
    "data.Augment": "flip=True, pad=4, padding_mode='zeros'",
    "Tensor.__dlpack__": "self, **options", "Tensor.__dlpack_device__": "self",
    "models.build": "description", "models.input_shape": "description",
    "models.describe": "text, *, in_channels=None, classes=None, image=None",
    "data.read_image": "file, size, channels=3",
    "data.folder": "path, image_size=32, test_share=0.2, seed=0, *, channels=3, limit=None, "
                   "progress=None, skip_broken=False",
    "data.npz": "path, image_size=None, test_share=0.2, seed=0, *, limit=None",
    "data.Source.from_options": "text=None, *, data_dir=None, **more",
    "data.Source.load": "self, download=False, progress=None",
    "nn.summary": "model, input_shape=(32, 32, 3), device=None", "nn.fusion.disabled": "",
    "train.predictions": "model, data, *, mean=None, std=None, batch_size=256, views='none'",
    "nn.nvtx_ranges": "model",
    "models.simple_convnet": "in_channels=3, classes=10, image=32",
    "models.cifar_convnet": "in_channels=3, classes=10, image=32",
    "models.speedrun": "in_channels=3, classes=10, image=32", "nn.Scale": "factor",
    "nn.init.dirac_": "p, groups=1, keep=False", "nn.init.whitening_": "p, images, eps=0.0005",
    "optim.Muon": "params, lr, momentum=0.95, nesterov=True, weight_decay=0.0, orthogonal=True, "
                  "iterations=5, normalize=False, master=False",
    "optim.LossScale": "optimizer, scale=65536.0, growth=2.0, backoff=0.5, interval=2000",
    "train.Group": "names, lr=None, momentum=None, weight_decay=None, nesterov=None, "
                   "orthogonal=None, iterations=None, normalize=None, stop=None",
    "ops.batch_norm": "x, gamma, beta, running_mean, running_var, *, training, momentum=0.1, "
                      "eps=1e-05, activation=None, residual=None, num_batches_tracked=None",
    "ops.conv_batch_norm": "x, w, gamma, beta, running_mean, running_var, *, stride=1, padding=0, "
                           "dilation=1, pool=False, training, momentum=0.1, eps=1e-05, "
                           "activation=None, residual=None, num_batches_tracked=None, "
                           "precision='ieee'",
    "ops.conv_max_pool": "x, w, b=None, *, stride=1, padding=0, dilation=1, precision='ieee', "
                         "activation=None",
    "ops.recompute": "f, *inputs", "ops.tuned": "table",
}


def find(path):
    found = gpc
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    found = inspect.signature(find(name)).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in found]
    assert str(inspect.Signature(plain))[1:-1] == SIGNATURES[name]


@pytest.mark.parametrize("name", "data grad shape dtype".split())
def test_tensor_has(name):
    assert hasattr(gpc.Tensor(np.ones(2)), name)


def test_tensors_calculate():
    a = gpc.Tensor(np.array([[1.0, 2.0], [3.0, 4.0]]), requires_grad=True)
    y = ((a + 1) * 2 - a / 2) @ a
    y.sum().backward()
    assert y.shape == (2, 2) and a.grad.shape == (2, 2)


def test_data_sets_have_their_fields():
    train, test = gpc.data.shapes(20, 10)
    assert train.images.shape == (20, 32, 32, 3) and train.images.dtype == np.uint8
    assert len(test.labels) == 10 and len(train.classes) == 10


@pytest.mark.parametrize("module", [
    gpc, gpc.data, gpc.models, gpc.nn, gpc.nn.fusion, gpc.ops, gpc.optim, gpc.reference, gpc.train],
    ids=lambda m: m.__name__)
def test_all_names_what_is_there(module):
    assert sorted(module.__all__) == sorted(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_op_is_exported():
    """Each file of a family, but for engines and helpers, has a function in gpuconv.ops."""
    folder = pathlib.Path(gpc.ops.__file__).parent
    files = {path.stem for path in folder.glob("*/[!_]*.py") if path.parent.name != "engine"
             and not path.stem.startswith(("cpu_", "gpu_"))}
    exported = {getattr(gpc.ops, name).__module__.split(".")[-1] for name in gpc.ops.__all__}
    assert files - {"autotune", "function", "gemm", "pool_window"} == exported - {"recompute"}


def test_importing_it_imports_nothing_slow():
    code = f"import sys, gpuconv; print([m for m in {SLOW} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
