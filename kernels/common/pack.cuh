// Sixteen bytes at a time, or another power of two: neighbouring elements in one load or store.
#pragma once

template <class E, int N = 16 / sizeof(E)>
struct alignas(N * sizeof(E)) Pack {
    static constexpr int V = N;               // elements
    E v[V];
};

// May p be read as packs of so many bytes? A view can begin anywhere in its array.
template <int BYTES = 16>
__device__ inline bool is_aligned(const void* p) { return (unsigned long long)p % BYTES == 0; }
