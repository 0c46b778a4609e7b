"""A 3x3 convolution, padding 1, by cuDNN itself, through NVIDIA's cudnn-frontend.

One graph per call of ``prepare``, on CuPy's arrays as they are: channels last, sums in float32; of
float32 arrays cuDNN rounds the factors to TF32. It takes the first plan that its heuristics name.
"""

from collections.abc import Callable
from typing import Any

from gpuconv import backend


def prepare(x: Any, w: Any, gy: Any, gradient: str = "") -> Callable[[], Any]:
    """What computes y, gx or gw, on CuPy's current stream.

    Args:
        x, w, gy: (N, H, W, C), (K, 3, 3, C), (N, H, W, K), on the GPU, of one dtype.
        gradient: "" for y, "x" or "w" for that gradient.
    """
    import cudnn
    cp = backend.cupy()
    kind = {"float16": cudnn.data_type.HALF, "float32": cudnn.data_type.FLOAT}[x.dtype.name]
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=cp.cuda.get_current_stream().ptr)
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=cudnn.data_type.FLOAT,
                          compute_data_type=cudnn.data_type.FLOAT, handle=handle)
    X, W, GY = (graph.tensor(name=name, dim=sizes(a), stride=steps(a), data_type=kind)
                for name, a in (("x", x), ("w", w), ("gy", gy)))
    around = dict(padding=[1, 1], stride=[1, 1], dilation=[1, 1])
    if gradient == "x":
        out, inputs = graph.conv_dgrad(loss=GY, filter=W, **around), {GY: gy, W: w}
    elif gradient == "w":
        out, inputs = graph.conv_wgrad(image=X, loss=GY, **around), {X: x, GY: gy}
    else:
        out, inputs = graph.conv_fprop(image=X, weight=W, **around), {X: x, W: w}
    result = cp.empty_like({"x": x, "w": w}.get(gradient, gy))
    out.set_output(True).set_data_type(kind).set_dim(sizes(result)).set_stride(steps(result))
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    workspace = cp.empty(max(1, graph.get_workspace_size()), "uint8")

    def run() -> Any:
        graph.execute({**inputs, out: result}, workspace, handle=handle)
        return result

    return run


def sizes(a: Any) -> list[int]:
    """cuDNN names the axes of (N, H, W, C) in the order N, C, H, W."""
    return [a.shape[axis] for axis in (0, 3, 1, 2)]


def steps(a: Any) -> list[int]:
    """Elements from one to the next, in that order."""
    return [a.strides[axis] // a.itemsize for axis in (0, 3, 1, 2)]
