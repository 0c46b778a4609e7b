// Fetch a batch of images: normalised, cropped and mirrored bytes, or floats.  gpuconv/data/augment.py
//
//   y[b,h,w,c] = table[c, pixel],   pixel = images[i, h + oh, w' + ow, c]
//   i          = order[clock[1]*batch_size + b],   chosen[b] = labels[i]
//   w'         = w, or W-1-w where image i is mirrored
//   oh, ow     = -pad .. pad, and mirrored or not: words of Philox at counter (i, 0, epoch); ALTERNATE
//                mirrors by the word of epoch 0, and the other way round in odd epochs; or `down`,
//                `right`, and mirrored if ALWAYS, for all images
//
// Outside the image a pixel is 0, or with `reflect` its mirror image. The table was computed by NumPy,
// with the operations of the CPU path: the bits are the same. A captured graph replays with the
// epoch = clock[0] and the batch that its clock holds then; without one, batch 0 of `epoch`.
//
// Launch   1-d, any grid, any block, no shared memory; a block for each of `parts` parts of an image,
//          a thread for 16 bytes of y at a time where the size of an image and the addresses allow,
//          else for one element. A thread draws its image's words once per part.
// Traffic  forward  reads images <= B*H*W*C (bytes from L1, rows begin anywhere: asks <= B*H*W*C;
//                   sectors <= 9), order B (asks <= 8*B*parts), clock 2 (asks <= 16*B*parts), labels
//                   B (sectors <= 4), table <= 256*C (a gather from L1, 1 KB per channel: asks <=
//                   B*H*W*C; sectors <= 8), writes y B*H*W*C (sectors <= 1.5 where an image fills no
//                   packs), chosen B (sectors <= 8).
//          gather   reads images <= B*size (sectors <= 1.5, likewise), order B (asks <= 8*B*parts),
//                   clock 1 (asks <= 8*B*parts), labels B (sectors <= 4), writes y B*size (sectors
//                   <= 1.5), chosen B (sectors <= 8).
//          Coalesced, but for those.
// Order    every element is written once; nothing is added up.

#include "common/common.cuh"
#include "common/pack.cuh"
#include "common/philox.cuh"

using T = CFG_T;                          // stored element of y, table; images, if they are floats
using I = CFG_I;                          // flat index: int, or long long for huge arrays
constexpr int C = CFG_C;                  // channels; gather does not mind
constexpr int V = Pack<T>::V;             // elements of 16 bytes
// mirrored: not at all, at random (1), every other epoch, all images
constexpr int NEVER = 0, ALTERNATE = 2, ALWAYS = 3;

// How an image is moved: down, right, and mirrored.
struct Move {
    int h, w;
    bool flip;
};

__device__ inline Move moved(
    int i, int pad, int flip, int down, int right,
    unsigned seed, unsigned stream, unsigned long long epoch)
{
    if (!pad && (flip == NEVER || flip == ALWAYS)) return {down, right, flip == ALWAYS};
    const Words random = philox(
        {{(unsigned)i, 0, (unsigned)epoch, (unsigned)(epoch >> 32)}}, seed, stream);
    const unsigned long long reach = 2 * pad + 1;
    bool mirrored = flip != NEVER && random.w[2] >> 31;
    if (flip == ALTERNATE) {
        mirrored = (philox({{(unsigned)i, 0, 0, 0}}, seed, stream).w[2] >> 31) ^ (epoch & 1);
    }
    return {(int)(random.w[0] * reach >> 32) - pad, (int)(random.w[1] * reach >> 32) - pad,
            mirrored};
}

// The pixel that lies at position p of a line of n, mirrored at its ends; |p| < 2n - 1.
__device__ inline int reflected(int p, int n) {
    p = p < 0 ? -p : p;
    return p < n ? p : 2 * (n - 1) - p;
}

// Which image is number b of the batch: within the arrays, whatever order and clock hold.
__device__ inline int image_at(const int* order, long long first, int b, long long count, int N)
{
    const long long at = max(0ll, min(first + b, count - 1));
    return min(max(order[at], 0), N - 1);
}

// V elements of an image's y, from element e on: they lie in SPAN pixels at most.
template <int V>
__device__ inline Pack<T, V> pixels(
    const unsigned char* image, const T* table, int e, int H, int W, Move move, bool reflect)
{
    constexpr int SPAN = (V + C - 2) / C + 1;
    const int first = (unsigned)e / C, c0 = e - first * C;
    int h = (unsigned)first / (unsigned)W, w = first - h * W;
    int begin[SPAN];                            // of each pixel's bytes; -1 outside the image
#pragma unroll
    for (int k = 0; k < SPAN; ++k) {
        int y = h + move.h, x = (move.flip ? W - 1 - w : w) + move.w;
        if (reflect) {
            y = reflected(y, H);
            x = reflected(x, W);
        }
        begin[k] = 0 <= y && y < H && 0 <= x && x < W ? (y * W + x) * C : -1;
        if (++w == W) {
            w = 0;
            ++h;
        }
    }
    unsigned char byte[V];
#pragma unroll
    for (int k = 0; k < V; ++k) {
        const bool next = c0 + k % C >= C;      // of two pixels, which?
        const int from = next ? begin[k / C + 1 < SPAN ? k / C + 1 : 0] : begin[k / C];
        byte[k] = image[max(from, 0) + c0 + k % C - (next ? C : 0)];
        if (from < 0) byte[k] = 0;
    }
    Pack<T, V> result;
#pragma unroll
    for (int k = 0; k < V; ++k) {
        const int c = c0 + k % C;
        result.v[k] = table[(c >= C ? c - C : c) * 256 + byte[k]];
    }
    return result;
}

extern "C" __global__ void augment_forward(
    const unsigned char* __restrict__ images,   // (N, H, W, C)
    const int* __restrict__ labels,             // (N,)            null: none are wanted
    const int* __restrict__ order,              // (count,)        clamped to 0 .. N-1
    const long long* __restrict__ clock,        // (2,) or longer  epoch, batch; null: epoch, 0
    const T* __restrict__ table,                // (C, 256)
    T* __restrict__ y,                          // (B, H, W, C)
    int* __restrict__ chosen,                   // (B,)
    int B, int N, int H, int W,
    int batch_size, long long count, int parts,
    int pad, int flip, int down, int right,     // pixels; pad at random, else down and right
    bool reflect,
    unsigned seed, unsigned stream, unsigned long long epoch)
{
    const long long first = clock ? clock[1] * batch_size : 0;
    if (clock) epoch = (unsigned long long)clock[0];
    const int size = H * W * C;
    const bool packs = size % V == 0 && is_aligned(y);
    for (long long unit = blockIdx.x; unit < (long long)B * parts; unit += gridDim.x) {
        const int b = unit / parts, part = unit % parts, i = image_at(order, first, b, count, N);
        const Move move = moved(i, pad, flip, down, right, seed, stream, epoch);
        const unsigned char* image = images + (I)i * size;
        T* mine = y + (I)b * size;
        const int start = part * blockDim.x + threadIdx.x, step = parts * blockDim.x;
        if (labels && start == 0) chosen[b] = labels[i];
        if (packs) {
            for (int k = start; k < size / V; k += step)
                reinterpret_cast<Pack<T>*>(mine)[k] =
                    pixels<V>(image, table, k * V, H, W, move, reflect);
        } else {
            for (int k = start; k < size; k += step)
                mine[k] = pixels<1>(image, table, k, H, W, move, reflect).v[0];
        }
    }
}

extern "C" __global__ void augment_gather(
    const T* __restrict__ images,               // (N, size)
    const int* __restrict__ labels,             // (N,)
    const int* __restrict__ order,              // (count,)        clamped to 0 .. N-1
    const long long* __restrict__ clock,        // (2,) or longer  epoch, batch
    T* __restrict__ y,                          // (B, size)
    int* __restrict__ chosen,                   // (B,)
    int B, int N, int size,
    int batch_size, long long count, int parts)
{
    const long long first = clock[1] * batch_size;
    const bool packs = size % V == 0 && is_aligned(images) && is_aligned(y);
    for (long long unit = blockIdx.x; unit < (long long)B * parts; unit += gridDim.x) {
        const int b = unit / parts, part = unit % parts, i = image_at(order, first, b, count, N);
        const T* image = images + (I)i * size;
        T* mine = y + (I)b * size;
        const int start = part * blockDim.x + threadIdx.x, step = parts * blockDim.x;
        if (start == 0) chosen[b] = labels[i];
        if (packs) {
            for (int k = start; k < size / V; k += step)
                reinterpret_cast<Pack<T>*>(mine)[k] = reinterpret_cast<const Pack<T>*>(image)[k];
        } else {
            for (int k = start; k < size; k += step) mine[k] = image[k];
        }
    }
}
