// What an epoch's order is sorted by.                                   gpuconv/data/loader.py
//
//   keys[i] = words[2i] * 2^32 + words[2i + 1]      of random.words() for (key, step)
//
// Dtypes   float32: it has none of its own
// Launch   1-d, one thread per key, any grid, any block, no shared memory.
// Traffic  keys  writes keys n. Coalesced.
// Order    no sums across threads, no atomics: runs are bit-identical.

#include "common/common.cuh"
#include "common/philox.cuh"

extern "C" __global__ void shuffle_keys(
    unsigned long long* __restrict__ keys,   // (n,)
    unsigned k0,
    unsigned k1,
    unsigned long long step,
    long long n)
{
    for (long long i : grid_stride<long long>(n)) {
        const unsigned long long high = philox_word(2 * i, k0, k1, step);
        keys[i] = high << 32 | philox_word(2 * i + 1, k0, k1, step);
    }
}
