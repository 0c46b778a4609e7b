"""Engines of the GPU that an op's file would drown in: convolutions as implicit products.

    problem.py          the sizes of a convolution, and the two others that are its gradients
    choice.py           which engine computes a convolution, and with which tiles
    table.py            choices that were measured, measure.py: measuring them
    epilogue.py         may an activation go into the op before it?
    tensor_cores.py     forward and input gradient, 16-bit and tf32
    weight_gradient.py  the weight gradient on tensor cores, split along the pixels
    simt.py             all three on the ordinary cores: every dtype, groups
    column_sums.py      sums over rows: the gradient of a bias
    explicit.py         im2col and cuBLAS, for comparison and where a table says so

All but the last write into arrays they are given, run on the current stream, wait for nothing and
call no library, so that a step can be captured as a CUDA graph.
"""
