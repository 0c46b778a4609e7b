// hc_mma.cpp - tensor cores, ldmatrix and cp.async on the CPU.
//
// Warp functions: every lane leaves its operands; the last of the 32 to arrive computes for all of
// them; then each lane takes its own result. cp.async: the target is NaN, and to the checker as
// good as never written, from the start until the thread's own wait lets the copy land: the
// hardware may take as long. The source is read at both ends, the hardware may choose.
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef HC_WATCH
#define HC_READ(n, p) __tsan_read##n(const_cast<void*>(static_cast<const void*>(p)))
#define HC_WRITE(n, p) __tsan_write##n(p)
extern "C" {
void __tsan_read4(void*);
void __tsan_read8(void*);
void __tsan_read16(void*);
void __tsan_write4(void*);
void __tsan_write8(void*);
void __tsan_write16(void*);
void hc_watch_forget(void*, size_t) __attribute__((weak));  // these bytes hold nothing
}
#define HC_BOTH_ENDS (hc_watch_forget != nullptr)  // who only counts sees a copy once
#else
#define HC_BOTH_ENDS false
#define HC_READ(n, p)
#define HC_WRITE(n, p)
#endif

extern "C" {
extern unsigned hc_thread;
extern unsigned hc_copies[1024];  // in flight, by thread
bool hc_is_shared(const void* p, size_t n);
void hc_fail(const char* what, const void* at);
void hc_warp(const char* function);
}

namespace {

// ---- warp functions

struct Warp {
    unsigned arrived, computed;  // lanes; times
    struct {
        float d[4];
        unsigned a[4], b[2];
        alignas(16) uint16_t row[8];
        unsigned out[4];
    } lane[32];
};
Warp warps[32];

using Compute = void (*)(Warp&, int);

// Wait for the other lanes; the last one computes.
void together(const char* function, Warp& w, Compute compute, int option) {
    const unsigned before = w.computed;
    if (++w.arrived == 32) {
        w.arrived = 0;
        w.computed++;
        compute(w, option);
    }
    hc_warp(function);
    if (w.computed == before) hc_fail("a warp function reached by fewer than 32 lanes", nullptr);
}

struct Halves {
    float value[65536];
    Halves() {
        for (unsigned bits = 0; bits < 65536; bits++) {
            const uint16_t low = bits;
            _Float16 h;
            memcpy(&h, &low, 2);
            value[bits] = h;
        }
    }
};
float half_to_float(unsigned bits) {
    static const Halves halves;
    return halves.value[bits];
}
float to_float(unsigned bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
float bfloat_to_float(unsigned bits) { return to_float(bits << 16); }

enum { F16, BF16, TF32 };

void multiply(Warp& w, int kind) {
    const int K = kind == TF32 ? 8 : 16, apart = K / 2;
    float A[16][16], B[16][8];
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 6; i++) {
            const unsigned r = i < 4 ? w.lane[l].a[i] : w.lane[l].b[i - 4];
            const int k = (kind == TF32 ? t : 2 * t) + apart * (i < 4 ? i / 2 : i - 4);
            auto put = [&](int k, float v) { i < 4 ? A[g + 8 * (i % 2)][k] = v : B[k][g] = v; };
            if (kind == TF32) {
                put(k, to_float(r & 0xFFFFE000));  // the other bits are not looked at
            } else {
                auto convert = kind == F16 ? half_to_float : bfloat_to_float;
                put(k, convert(r & 0xFFFF));
                put(k + 1, convert(r >> 16));
            }
        }
    }
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) {
            const int m = l / 4 + 8 * (i / 2), n = l % 4 * 2 + i % 2;
            float sum = w.lane[l].d[i];
            for (int k = 0; k < K; k++) sum += A[m][k] * B[k][n];
            w.lane[l].d[i] = sum;
        }
    }
}

void distribute(Warp& w, int matrices, bool transposed) {
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < matrices; i++) {
            auto element = [&](int row, int column) { return w.lane[8 * i + row].row[column]; };
            const int g = l / 4, t = l % 4;
            const unsigned low = transposed ? element(2 * t, g) : element(g, 2 * t);
            const unsigned high = transposed ? element(2 * t + 1, g) : element(g, 2 * t + 1);
            w.lane[l].out[i] = low | high << 16;
        }
    }
}
void straight(Warp& w, int matrices) { distribute(w, matrices, false); }
void across(Warp& w, int matrices) { distribute(w, matrices, true); }

// ---- cp.async: one queue per thread, in the order of their start

constexpr unsigned RING = 256;
struct Copy {
    void* to;
    const void* from;
    unsigned group;
    int bytes;
    bool valid;
};
struct Queue {
    unsigned first, group;  // of hc_copies copies; those open now
    Copy ring[RING];
};
Queue queues[1024];

bool aligned(const void* p, int n) { return reinterpret_cast<uintptr_t>(p) % n == 0; }

void look(const void* p, int bytes) {
    if (bytes == 4) HC_READ(4, p);
    if (bytes == 8) HC_READ(8, p);
    if (bytes == 16) HC_READ(16, p);
}
void put(void* p, int bytes) {
    if (bytes == 4) HC_WRITE(4, p);
    if (bytes == 8) HC_WRITE(8, p);
    if (bytes == 16) HC_WRITE(16, p);
}

}  // namespace

extern "C" {

void hc_mma_begin() {  // a launch; the last one may have ended in the middle
    for (auto& w : warps) w.arrived = 0;
    memset(hc_copies, 0, sizeof hc_copies);
}

void hc_mma(int kind, float* d, const unsigned* a, const unsigned* b) {
    static const char* const names[] = {"mma_f16", "mma_bf16", "mma_tf32"};
    Warp& w = warps[hc_thread / 32];
    auto& mine = w.lane[hc_thread % 32];
    memcpy(mine.d, d, sizeof mine.d);
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    together(names[kind], w, multiply, kind);
    memcpy(d, mine.d, sizeof mine.d);
}

void hc_ldmatrix(unsigned* out, const void* row, int matrices, bool transposed) {
    Warp& w = warps[hc_thread / 32];
    auto& mine = w.lane[hc_thread % 32];
    if (hc_thread % 32 < 8u * matrices) {
        if (!aligned(row, 16)) hc_fail("ldmatrix: the address of a row is not 16-byte aligned", row);
        if (!hc_is_shared(row, 16)) hc_fail("ldmatrix: a row outside of shared memory", row);
        HC_READ(16, row);
        memcpy(mine.row, row, 16);
    }
    static const char* const names[2][5] = {{"", "ldmatrix 1", "ldmatrix 2", "", "ldmatrix 4"},
                                            {"", "transposed 1", "transposed 2", "", "transposed 4"}};
    together(names[transposed][matrices], w, transposed ? across : straight, matrices);
    memcpy(out, mine.out, 4 * matrices);
}

void hc_cp_async(void* shared, const void* global, int bytes, bool valid) {
    if (!aligned(shared, bytes) || !aligned(global, bytes))
        hc_fail("cp_async: an address is not a multiple of its bytes",
                aligned(shared, bytes) ? global : shared);
    if (!hc_is_shared(shared, bytes)) hc_fail("cp_async: target outside of shared memory", shared);
    if (valid && hc_is_shared(global, 1)) hc_fail("cp_async: source in shared memory", global);
    unsigned& copies = hc_copies[hc_thread];
    Queue& q = queues[hc_thread];
    if (copies == RING) hc_fail("cp_async: over 256 copies of one thread in flight", shared);
    q.ring[(q.first + copies++) % RING] = {shared, global, q.group, bytes, valid};
    if (valid) look(global, bytes);
    put(shared, bytes);
    memset(shared, 0xFF, bytes);
#ifdef HC_WATCH
    if (hc_watch_forget) hc_watch_forget(shared, bytes);
#endif
}

void hc_cp_async_commit() { queues[hc_thread].group++; }

void hc_cp_async_wait(int open) {
    Queue& q = queues[hc_thread];
    for (; hc_copies[hc_thread]; hc_copies[hc_thread]--, q.first++) {
        const Copy& c = q.ring[q.first % RING];
        if (int(q.group - c.group) <= open) break;
        if (HC_BOTH_ENDS) put(c.to, c.bytes);
        if (c.valid) {
            if (HC_BOTH_ENDS) look(c.from, c.bytes);
            memcpy(c.to, c.from, c.bytes);
        } else
            memset(c.to, 0, c.bytes);
    }
}
}
