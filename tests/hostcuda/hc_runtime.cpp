// hc_runtime.cpp - run a kernel on the CPU, one block after the other.
//
// The threads of a block are fibers on one CPU thread. A fiber runs until it reaches a barrier or a
// warp intrinsic; the scheduler resumes it when all who should have arrived have. A kernel without
// them never switches: a plain loop over its threads. Shared memory is filled with NaN before each
// block. With -DHC_WATCH, a watcher looks at every access.
#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

// ---- what hostcuda.h declares

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
constexpr size_t MAX_SHARED = 232448;  // bytes of a block, 227 KB
extern "C" {
alignas(128) unsigned char hc_dynamic_shared[MAX_SHARED];
unsigned hc_thread;
int hc_atomic;
unsigned hc_copies[1024];  // cp.async in flight, by thread: for hc_mma.cpp
void hc_mma_begin();
extern char __start_hc_shared[] __attribute__((weak));  // the linker says where the kernels'
extern char __stop_hc_shared[] __attribute__((weak));   // static shared memory lies, if any
}

// ---- hooks of the watcher, see hostcuda.Mode

struct HcRt {
    uint64_t block;
    uint32_t epoch, wepoch[32];
    int active;
};
#ifdef HC_WATCH
extern "C" HcRt hc_rt;
extern "C" void hc_watch_range(void*, size_t, int);
extern "C" void hc_watch_allow(void*, size_t);
extern "C" void hc_watch_block();
#define HC_RT(x) x
#else
#define HC_RT(x)
#endif

// ---- fibers

#if defined(__x86_64__) && !defined(HC_UCONTEXT)
// 12 instructions; swapcontext would do two system calls.

struct Ctx {
    void* sp;
};
extern "C" void hc_swap(Ctx* from, Ctx* to);
asm(R"(.text
.type hc_swap,@function
hc_swap: push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
 mov %rsp,(%rdi); mov (%rsi),%rsp
 pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret
.size hc_swap,.-hc_swap
)");
static void make(Ctx* c, char* stk, size_t n, void (*fn)()) {
    auto* sp = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stk) + n) & ~uintptr_t(15));
    *--sp = nullptr;
    *--sp = reinterpret_cast<void*>(fn);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    c->sp = sp;
}
#else  // any other processor

struct Ctx {
    ucontext_t u;
};
static void hc_swap(Ctx* a, Ctx* b) { swapcontext(&a->u, &b->u); }
static void make(Ctx* c, char* stk, size_t n, void (*fn)()) {
    getcontext(&c->u);
    c->u.uc_stack.ss_sp = stk;
    c->u.uc_stack.ss_size = n;
    c->u.uc_link = nullptr;
    makecontext(&c->u, fn, 0);
}
#endif

namespace {

// ---- the state of a launch

enum State : uint8_t { NEW, RUN, BAR, WARP, DONE };
constexpr size_t STACK = 64 << 10;
struct Fiber {
    Ctx c;
    char* stk = nullptr;
};
struct Thread {
    State st;
    int fib;
    union {             // where it waits
        int line;              // of the barrier. No address: g++ may double a call
        const char* function;  // of the warp
    };
};
Ctx sched;
std::vector<Fiber> fibers;
std::vector<int> idle;
std::vector<Thread> th;
std::vector<unsigned> order;
std::vector<unsigned> warp_order;  // the same, warp after warp, once a warp asks: in_warps
bool in_warps;
unsigned& cur = hc_thread;
unsigned next_new, nthreads;
int cur_fib;
void (*body)(void**);
void** body_arg;
uint64_t seed = 0;
char err[512];
bool failed;
size_t dyn_bytes;
uint64_t shfl_slot[2][1024];
uint8_t shfl_phase[1024];
uint64_t rng() {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}
template <class T> void shuffle(T* a, size_t n) {  // seed 0: as it is, 1: reversed, else random
    if (seed == 1)
        std::reverse(a, a + n);
    else if (seed)
        for (size_t i = n; i > 1; i--) std::swap(a[i - 1], a[rng() % i]);
}
void set_tid(unsigned t) {
    cur = t;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}
void fail(const char* m, const void* at = nullptr) {
    if (!failed)
        snprintf(err, sizeof err, at ? "%s: block (%u,%u,%u) thread (%u,%u,%u) at %p"
                                     : "%s: block (%u,%u,%u) thread (%u,%u,%u)",
                 m, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, at);
    failed = true;
}

void fail_in(const char* m, int line) {
    char text[120];
    snprintf(text, sizeof text, "%s in line %d", m, line);
    fail(text);
}

// ---- the threads of one block

void fiber_main() {  // takes unstarted threads until none is left
    for (;;) {
        while (next_new < nthreads && !failed) {
            unsigned t = order[next_new++];
            th[t].st = RUN;
            th[t].fib = cur_fib;
            set_tid(t);
            HC_RT(hc_rt.active = 1);
            body(body_arg);
            HC_RT(hc_rt.active = 0);
            if (hc_copies[cur]) fail("thread ends with a cp.async in flight: wait for it");
            th[cur].st = DONE;
        }
        hc_swap(&fibers[cur_fib].c, &sched);
    }
}
void suspend(State s) {
    HC_RT(hc_rt.active = 0);
    th[cur].st = s;
    int f = cur_fib;
    unsigned me = cur;
    hc_swap(&fibers[f].c, &sched);
    cur_fib = f;
    set_tid(me);
    HC_RT(hc_rt.active = 1);
}
void switch_to(int f) {
    cur_fib = f;
    hc_swap(&sched, &fibers[f].c);
}
int get_fiber() {
    if (!idle.empty()) {
        int f = idle.back();
        idle.pop_back();
        return f;
    }
    Fiber f;
    f.stk = static_cast<char*>(
        mmap(nullptr, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(f.stk, 4096, PROT_NONE);
    HC_RT(hc_watch_allow(f.stk + 4096, STACK));
    make(&f.c, f.stk + 4096, STACK, fiber_main);
    fibers.push_back(f);
    return int(fibers.size()) - 1;
}
void all_idle() {
    idle.clear();
    for (int i = int(fibers.size()) - 1; i >= 0; i--) idle.push_back(i);
}
void restart_fibers() {  // after a fault: some hang in the middle of a thread
    for (auto& f : fibers) make(&f.c, f.stk + 4096, STACK, fiber_main);
    all_idle();
}
void resume_all(State from) {
    for (unsigned i = 0; i < nthreads; i++) {
        unsigned t = order[i];
        if (th[t].st == from) {
            th[t].st = RUN;
            switch_to(th[t].fib);
        }
    }
}

void resume_warp(unsigned begin, unsigned end) {  // in the same order
    if (!in_warps) {
        in_warps = true;
        warp_order = order;
        std::stable_sort(warp_order.begin(), warp_order.end(),
                         [](unsigned a, unsigned b) { return a >> 5 < b >> 5; });
    }
    bool waits[32];
    for (unsigned t = begin; t < end; t++) {
        waits[t - begin] = th[t].st == WARP;
        if (waits[t - begin]) th[t].st = RUN;
    }
    for (unsigned i = begin; i < end; i++)
        if (waits[warp_order[i] - begin]) switch_to(th[warp_order[i]].fib);
}

// ---- one block

void run_block() {
    in_warps = false;
    if (__start_hc_shared)  // all bits set is NaN
        memset(__start_hc_shared, 0xFF, __stop_hc_shared - __start_hc_shared);
    memset(hc_dynamic_shared, 0xFF, dyn_bytes);
    memset(shfl_phase, 0, nthreads);
    next_new = 0;
    for (unsigned i = 0; i < nthreads; i++) {
        th[i] = {NEW, -1, {0}};
        order[i] = i;
    }
    shuffle(order.data(), nthreads);
    while (next_new < nthreads && !failed) {
        int f = get_fiber();
        switch_to(f);
        if (next_new >= nthreads && th[cur].st == DONE && th[cur].fib == f) {
            idle.push_back(f);
        }
    }
    for (;;) {
        if (failed) break;
        unsigned nb = 0, nw = 0, nd = 0;
        int line = 0;
        bool mixed = false;
        for (unsigned t = 0; t < nthreads; t++) {
            auto& x = th[t];
            nb += x.st == BAR;
            nw += x.st == WARP;
            nd += x.st == DONE;
            if (x.st == BAR) {
                mixed |= line && line != x.line;
                line = x.line;
            }
        }
        if (nd == nthreads) break;
        if (nw) {  // release each warp whose live lanes all wait at a warp op
            bool any = false, mixed_functions = false;
            for (unsigned w = 0; w < nthreads; w += 32) {
                unsigned e = std::min(w + 32, nthreads), c = 0, live = 0;
                const char* function = nullptr;
                for (unsigned t = w; t < e; t++) {
                    live += th[t].st != DONE;
                    if (th[t].st != WARP) continue;
                    mixed_functions |= c++ && function != th[t].function;
                    function = th[t].function;
                }
                if (c && c == live && !mixed_functions) {
                    any = true;
                    HC_RT(hc_rt.wepoch[w >> 5]++);
                    resume_warp(w, e);
                }
            }
            if (!any) {
                fail(mixed_functions ? "lanes of a warp stand at different warp functions"
                                     : "warp intrinsic not reached by all live lanes of the warp");
                break;
            }
            continue;
        }
        if (mixed) {
            fail_in("__syncthreads divergence: threads wait at different barriers, one", line);
            break;
        }
        if (nd) {
            fail_in("__syncthreads not reached by threads that already exited, called", line);
            break;
        }
        HC_RT(hc_rt.epoch++);
        resume_all(BAR);
    }
    all_idle();  // whoever finished its thread has parked at the scheduler
    if (failed) restart_fibers();
}

// ---- faults: they end the launch, never the process

sigjmp_buf jb;
volatile sig_atomic_t guard;
void on_segv(int s, siginfo_t* si, void*) {
    if (guard) {
        guard = 0;
        fail(s == SIGFPE ? "integer division by zero" : "invalid address (out-of-bounds access)",
             si->si_addr);
        siglongjmp(jb, 1);
    }
    signal(s, SIG_DFL);
    raise(s);
}

// ---- numbers below 1e-38 are zero, as CuPy compiles for float (not for double)

bool flush;
void set_flush(bool on) {
#ifdef __x86_64__
    constexpr unsigned RESULTS = 1 << 15, OPERANDS = 1 << 6;
    const unsigned others = __builtin_ia32_stmxcsr() & ~(RESULTS | OPERANDS);
    __builtin_ia32_ldmxcsr(others | (on ? RESULTS | OPERANDS : 0));
#endif
}

// ---- one launch

int launch(dim3 g, dim3 b, size_t shm) {
    gridDim = g;
    blockDim = b;
    nthreads = b.x * b.y * b.z;
    failed = false;
    err[0] = 0;
    hc_atomic = 0;
    hc_mma_begin();
    dyn_bytes = shm;
    if (!nthreads || nthreads > 1024 || b.z > 64 || !g.x || !g.y || !g.z || g.x > 2147483647u ||
        g.y > 65535 || g.z > 65535 || shm > MAX_SHARED) {
        snprintf(err, sizeof err,
                 "invalid configuration argument grid (%u,%u,%u) block (%u,%u,%u) shared %zu", g.x,
                 g.y, g.z, b.x, b.y, b.z, shm);
        return 1;
    }
    th.resize(nthreads);
    order.resize(nthreads);
    fibers.reserve(1025);
#ifdef HC_WATCH
    if (__start_hc_shared)
        hc_watch_range(__start_hc_shared, __stop_hc_shared - __start_hc_shared, 1);
    if (shm) hc_watch_range(hc_dynamic_shared, shm, 1);
    for (auto& fb : fibers) hc_watch_allow(fb.stk + 4096, STACK);
    hc_rt.active = 0;
#endif
    static char alt[64 << 10];
    stack_t ss{}, os;
    ss.ss_sp = alt;
    ss.ss_size = sizeof alt;
    sigaltstack(&ss, &os);
    struct sigaction sa{}, o1, o2, o3;
    sa.sa_sigaction = on_segv;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &sa, &o1);
    sigaction(SIGBUS, &sa, &o2);
    sigaction(SIGFPE, &sa, &o3);
    static std::vector<uint64_t> blocks;  // outlives a jump out of the middle
    blocks.resize(uint64_t(g.x) * g.y * g.z);
    for (uint64_t i = 0; i < blocks.size(); i++) blocks[i] = i;
    shuffle(blocks.data(), blocks.size());
    if (!sigsetjmp(jb, 1)) {
        guard = 1;
        set_flush(flush);
        for (uint64_t i = 0; i < blocks.size() && !failed; i++) {
            const uint64_t n = blocks[i];
            blockIdx = {unsigned(n % g.x), unsigned(n / g.x % g.y), unsigned(n / g.x / g.y)};
            HC_RT(hc_rt.block = n);
            HC_RT(hc_rt.epoch = 0);
            HC_RT(hc_watch_block());
            run_block();
        }
    } else
        restart_fibers();
    set_flush(false);
    guard = 0;
    sigaction(SIGSEGV, &o1, nullptr);
    sigaction(SIGBUS, &o2, nullptr);
    sigaction(SIGFPE, &o3, nullptr);
    sigaltstack(&os, nullptr);
    return failed;
}

}  // namespace

// ---- what kernels call

extern "C" {

void __syncthreads(int line) {
    th[cur].line = line;
    suspend(BAR);
}

// Wait until all live lanes of the warp stand at a function of this name (one string literal).
void hc_warp(const char* function) {
    th[cur].function = function;
    suspend(WARP);
}
void __syncwarp(unsigned) { hc_warp("__syncwarp"); }

// bits of that lane of this warp, if ok; else the caller's own.
uint64_t hc_shuffle(uint64_t bits, unsigned lane, bool ok) {
    const unsigned me = cur, phase = shfl_phase[me] ^= 1;
    shfl_slot[phase][me] = bits;
    hc_warp("shuffle");
    const unsigned from = (me & ~31u) + (lane & 31u);
    return ok && from < nthreads ? shfl_slot[phase][from] : bits;
}

// Report a fault of the running thread, and end the launch.
void hc_fail(const char* what, const void* at) {
    HC_RT(hc_rt.active = 0);
    fail(what, at);
    siglongjmp(jb, 1);
}
// The same, which another thread has part in.
void hc_watch_fail(const char* m, const void* at, unsigned t, uint64_t b) {
    static char w[160];
    snprintf(w, sizeof w, "%s (other: thread %u of block %llu)", m, t, (unsigned long long)b);
    hc_fail(w, at);
}

// Is this the block's shared memory?
bool hc_is_shared(const void* p, size_t n) {
    auto inside = [&](const void* begin, const void* end) {
        return p >= begin && (const char*)p + n <= end;
    };
    return inside(hc_dynamic_shared, hc_dynamic_shared + dyn_bytes) ||
           inside(__start_hc_shared, __stop_hc_shared);
}

int hc_run(void (*kernel)(void**), void** arguments, const unsigned* n, size_t shared_bytes,
           bool flush_denormals, unsigned long long order_seed, char* error) {
    body = kernel;
    body_arg = arguments;
    flush = flush_denormals;
    seed = order_seed;
    const int bad = launch({n[0], n[1], n[2]}, {n[3], n[4], n[5]}, shared_bytes);
    if (bad) memcpy(error, err, sizeof err);
    return bad;
}

// Bytes of static shared memory of all kernels of this library.
__attribute__((visibility("default"))) size_t hc_static_shared() {
    return __start_hc_shared ? __stop_hc_shared - __start_hc_shared : 0;
}
}
