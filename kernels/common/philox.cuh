// Philox 4x32-10, counter-based random numbers: the same bits as gpuconv/random.py.
//
//   words(key, counter) = ten rounds of multiply, exclusive-or and swap over counter, keyed by key
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

struct Words {
    unsigned w[4];
};

__device__ inline Words philox(Words c, unsigned k0, unsigned k1) {
    for (int round = 0; round < 10; ++round) {
        const unsigned long long p0 = 0xD2511F53ull * c.w[0], p1 = 0xCD9E8D57ull * c.w[2];
        c = {{(unsigned)(p1 >> 32) ^ c.w[1] ^ k0, (unsigned)p1,
              (unsigned)(p0 >> 32) ^ c.w[3] ^ k1, (unsigned)p0}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// Word `element` of the sequence that random.words() gives for (key, step).
__device__ inline unsigned philox_word(
    unsigned long long element, unsigned k0, unsigned k1, unsigned long long step)
{
    const unsigned long long quarter = element >> 2;
    const Words four = philox({{(unsigned)quarter, (unsigned)(quarter >> 32),
                                (unsigned)step, (unsigned)(step >> 32)}}, k0, k1);
    return four.w[element & 3];
}
