// Sixteen bytes at a time: neighbouring elements in one load or store.
#pragma once

template <class E>
struct alignas(16) Pack {
    static constexpr int V = 16 / sizeof(E);  // elements
    E v[V];
};

// May p be read as Packs? A view can begin anywhere in its array.
__device__ inline bool is_aligned(const void* p) { return (unsigned long long)p % 16 == 0; }
