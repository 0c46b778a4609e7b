"""The engines of the CPU, which the ops call: what NumPy is told to do, and in which order.

    convolve     the three products of a convolution, and which of the routes makes them:
    patches        im2col, the products of filters with patches
    planes         the same for few channels
    winograd       a quarter of the products, for 3x3
    pieces       how their work is cut, and where windows lie
    windows      the pixels under pooling windows, and
    largest        their maxima, where those sat, and gradients on their way back
    rows, sums   one row against all rows of a matrix; sums over axes, by BLAS
    rectify      max(x, 0) and its mask; zeros: arrays of zeros to compare with
    normal       the normal law's distribution and density, for GELU
    philox       random numbers in place, for dropout

What NumPy is good at decides how they are written (float32, one core, arrays in its cache):

    a pass over memory          10 to 20 numbers a nanosecond; beyond the cache 5 to 8
    np.maximum(a, 0)            3: a scalar operand is not vectorised, an array of zeros is
    np.where, copyto(where=)    0.3
    strided operands            half as fast, through a buffer, unless runs of memory are long or
                                the buffer small (threads.BUFFER)
    two threads                 wait for each other between calls of less than 20 microseconds,
                                because both want the interpreter: so few calls, of 2**17 numbers
    a product of matrices       from 64 rows on near its best; its operands are packed at each call,
                                so that few rows and many filters wait for the filters
"""
