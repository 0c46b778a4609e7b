// Normalise, crop and mirror a batch of images, NHWC bytes to floats.      gpuconv/data/augment.py
//
//   y[b,h,w,c] = table[c, pixel],   pixel = images[i, h + oh, w' + ow, c],   i = index[b]
//   w'         = w, or W-1-w where image i is mirrored
//   oh, ow     = -pad .. pad, and mirrored or not: words of Philox at counter (i, 0, epoch)
//
// Outside the image a pixel is 0, or with `reflect` its mirror image. The table was computed by NumPy,
// with the operations of the CPU path: the bits are the same.
//
// Launch   1-d, one thread per element of y, any grid, any block, no shared memory.
//          Neighbouring threads hold neighbouring channels, then columns: writes are coalesced.
// Traffic  forward  reads images <= B*H*W*C (rows begin anywhere: sectors <= 2), index B (asks
//          <= B*H*W*C/16), table <= 256*C (a gather from L1, 1 KB per channel: asks <= B*H*W*C;
//          sectors <= 8), writes y B*H*W*C. Coalesced, but for those two. Each thread draws its
//          image's words again: ten rounds of integers cost less than storing them.
// Order    every element is written once; nothing is added up.

#include "common.cuh"
#include "philox.cuh"

using T = CFG_T;                          // stored element of y
using A = CFG_A;                          // table
using I = CFG_I;                          // flat index: int, or long long for huge arrays

// The pixel that lies at position p of a line of n, mirrored at its ends; |p| < 2n - 1.
__device__ inline int reflected(int p, int n) {
    p = p < 0 ? -p : p;
    return p < n ? p : 2 * (n - 1) - p;
}

extern "C" __global__ void augment_forward(
    const unsigned char* __restrict__ images,   // (N, H, W, C)
    const int* __restrict__ index,              // (B,)            clamped to 0 .. N-1
    const A* __restrict__ table,                // (C, 256)
    T* __restrict__ y,                          // (B, H, W, C)
    int B, int N, int H, int W, int C,
    int pad, bool flip, bool reflect,           // pad: pixels
    unsigned seed, unsigned stream, unsigned long long epoch)
{
    for (I t : grid_stride<I>((I)B * H * W * C)) {
        const int c = t % C;
        int w = t / C % W, h = t / C / W % H;
        const int i = min(max(index[t / C / W / H], 0), N - 1);

        if (pad || flip) {
            const Words random = philox(
                {{(unsigned)i, 0, (unsigned)epoch, (unsigned)(epoch >> 32)}}, seed, stream);
            const unsigned long long reach = 2 * pad + 1;
            if (flip && random.w[2] >> 31) w = W - 1 - w;
            h += (int)(random.w[0] * reach >> 32) - pad;
            w += (int)(random.w[1] * reach >> 32) - pad;
        }
        if (reflect) {
            h = reflected(h, H);
            w = reflected(w, W);
        }
        const bool inside = 0 <= h && h < H && 0 <= w && w < W;
        const int pixel = inside ? images[(((I)i * H + h) * W + w) * C + c] : 0;
        y[t] = (T)table[c * 256 + pixel];
    }
}
