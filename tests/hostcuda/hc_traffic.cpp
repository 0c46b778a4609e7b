// hc_traffic.cpp - what the warps of a kernel ask of memory: a watcher, see hostcuda.Mode.
//
// The kernel is compiled with -fsanitize=thread, which calls __tsan_read<n> or __tsan_write<n> at
// each access, and -fsanitize-coverage=trace-pc, which calls __sanitizer_cov_trace_pc at the start
// of each basic block. So every thread leaves a trace of where it was and what it touched. From the
// traces of its 32 lanes a warp is put together as if they had run in lock-step: of all lanes, the
// ones at the lowest address in the code go first. Lanes that skip a branch wait behind it for the
// others, lanes that leave a loop wait at its end. The accesses of the lanes that go together are
// one request.
//
//   global memory   a request costs as many sectors of 32 bytes as it touches
//   shared memory   32 banks of 4 bytes. Lanes go in groups of 32, of 16 for accesses of 8 bytes,
//                   of 8 for 16 bytes; a group takes as many passes as its busiest bank has
//                   different words, so one word for many lanes (a broadcast) is free
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <dlfcn.h>
#include <map>
#include <tuple>
#include <vector>

struct HcRt {                     // the state of the run, kept by hc_runtime.cpp
    uint64_t block;
    uint32_t epoch, wepoch[32];
    int active;                   // inside kernel code
};
extern "C" {
HcRt hc_rt;
extern unsigned hc_thread;
extern int hc_atomic;             // over 0 inside an atomic function
void hc_run();                    // in the library, all code of kernels comes before it
}

namespace {

constexpr unsigned WARP = 32, SECTOR = 32, BANKS = 32, ALIGNED = 512, THREADS = 1024;
enum Kind : uint8_t { MOVE, READ, WRITE, ATOMIC };

struct Event {
    const void* pc;               // behind the call
    uintptr_t at;
    Kind kind;
    uint8_t size;
    uint16_t range;
};

struct Unique {                   // what a perfect cache would move
    uint64_t bytes = 0, sectors = 0;
    std::vector<bool> seen, sector_seen;
};

struct Range {
    uintptr_t begin, end;
    uintptr_t shift;              // subtracted from addresses
    bool shared;
    Unique read, written;
};

struct Row {                      // all requests of one instruction to one array
    uint64_t requests, lanes, bytes, distinct, sectors, least, passes, groups;
};

std::vector<Range> ranges;                                          // the arrays of this launch
std::map<std::tuple<const void*, uint16_t, Kind, uint8_t>, Row> rows;
std::vector<Event> trace[THREADS];
const void* last_move[THREADS];
uintptr_t old_value[THREADS];     // that an atomic of this thread has just read
std::vector<std::pair<uintptr_t, uintptr_t>> allocations;
uint32_t epoch;                   // barriers before these traces

using Interval = std::pair<uint64_t, uint64_t>;

void mark(Unique& u, Interval bytes, uint64_t start) {
    for (uint64_t i = bytes.first; i < bytes.second; ++i) {
        u.bytes += !u.seen[i - start];
        u.seen[i - start] = true;
    }
    for (uint64_t s = bytes.first / SECTOR; s <= (bytes.second - 1) / SECTOR; ++s) {
        const uint64_t i = s - start / SECTOR;
        u.sectors += !u.sector_seen[i];
        u.sector_seen[i] = true;
    }
}

// Lanes' bytes as intervals, sorted, those that meet made one.
void unite(std::vector<Interval>& parts) {
    std::sort(parts.begin(), parts.end());
    size_t n = 0;
    for (auto& p : parts) {
        if (n && p.first <= parts[n - 1].second)
            parts[n - 1].second = std::max(parts[n - 1].second, p.second);
        else
            parts[n++] = p;
    }
    parts.resize(n);
}

void global_request(Row& row, Range& range, Kind kind, std::vector<Interval>& parts) {
    unite(parts);
    uint64_t distinct = 0, sectors = 0, last = ~0ull;
    for (auto& p : parts) {
        distinct += p.second - p.first;
        const uint64_t from = p.first / SECTOR, to = (p.second - 1) / SECTOR;
        sectors += to - from + (from != last);
        last = to;
        if (kind != WRITE) mark(range.read, p, range.begin - range.shift);
        if (kind != READ) mark(range.written, p, range.begin - range.shift);
    }
    row.distinct += distinct;
    row.sectors += sectors;
    row.least += (distinct + SECTOR - 1) / SECTOR;
}

void shared_request(Row& row, const Event* const* lanes, unsigned size) {
    const unsigned group = std::min(WARP, BANKS * 4 / std::max(4u, size));
    for (unsigned first = 0; first < WARP; first += group) {
        std::vector<uint64_t> words;
        for (unsigned lane = first; lane < first + group; ++lane)
            if (lanes[lane])
                for (uint64_t w = lanes[lane]->at / 4; w <= (lanes[lane]->at + size - 1) / 4; ++w)
                    words.push_back(w);
        if (words.empty()) continue;
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        unsigned busy[BANKS] = {};
        for (auto w : words) ++busy[w % BANKS];
        row.passes += *std::max_element(busy, busy + BANKS);
        row.groups += 1;
        row.distinct += 4 * words.size();
    }
}

// The lanes that are at one place in the code, each with an access.
void request(const Event* const* lanes) {
    bool done[WARP] = {};
    for (unsigned lane = 0; lane < WARP; ++lane) {  // one array per request, nearly always
        if (!lanes[lane] || done[lane]) continue;
        const Event& e = *lanes[lane];
        Row& row = rows[{e.pc, e.range, e.kind, e.size}];
        const Event* same[WARP] = {};
        std::vector<Interval> parts;
        for (unsigned i = lane; i < WARP; ++i) {
            if (!lanes[i] || lanes[i]->range != e.range || lanes[i]->size != e.size) continue;
            done[i] = true;
            same[i] = lanes[i];
            parts.push_back({same[i]->at, same[i]->at + e.size});
        }
        row.requests += 1;
        row.lanes += parts.size();
        row.bytes += parts.size() * e.size;
        if (ranges[e.range].shared)
            shared_request(row, same, e.size);
        else
            global_request(row, ranges[e.range], e.kind, parts);
    }
}

void run_warp(unsigned first) {
    size_t next[WARP] = {};
    for (;;) {
        std::pair<const void*, Kind> lowest{};
        for (unsigned i = 0; i < WARP; ++i) {
            const auto& t = trace[first + i];
            if (next[i] == t.size()) continue;
            const std::pair here{t[next[i]].pc, t[next[i]].kind};
            if (!lowest.first || here < lowest) lowest = here;
        }
        if (!lowest.first) return;
        const Event* lanes[WARP] = {};
        bool any = false;
        for (unsigned i = 0; i < WARP; ++i) {
            const auto& t = trace[first + i];
            if (next[i] == t.size()) continue;
            const Event& e = t[next[i]];
            if (std::pair{e.pc, e.kind} != lowest) continue;
            ++next[i];
            if (e.kind != MOVE) any = true, lanes[i] = &e;
        }
        if (any) request(lanes);
    }
}

void run_warps() {
    for (unsigned first = 0; first < THREADS; first += WARP) run_warp(first);
    for (auto& t : trace) t.clear();
}

void note(Event e) {
    if (hc_rt.epoch != epoch) {   // the whole block has passed a barrier
        run_warps();
        epoch = hc_rt.epoch;
    }
    if (e.pc > (const void*)hc_run) e.pc = last_move[hc_thread];  // in hc_mma.cpp
    if (e.kind == MOVE) last_move[hc_thread] = e.pc;
    trace[hc_thread].push_back(e);
}

// size bytes; at a struct that is no vector (`whole` false) in pieces, as large as may be aligned.
void access(void* p, size_t size, bool write, const void* pc, bool whole = true) {
    if (!hc_rt.active) return;
    const auto at = (uintptr_t)p;
    for (size_t i = 0; i < ranges.size(); ++i) {
        const Range& r = ranges[i];
        if (at < r.begin || at >= r.end) continue;
        if (hc_atomic && write && old_value[hc_thread] == at) return;  // second half of an atomic
        old_value[hc_thread] = hc_atomic ? at : 0;
        const Kind kind = hc_atomic ? ATOMIC : write ? WRITE : READ;
        size_t piece = size;
        if (!whole) {
            piece = size > 16 ? 16 : std::min(size / 2, size_t(4));
            while (piece > 1 && (size % piece || at % piece)) piece /= 2;
        }
        for (size_t done = 0; done < size; done += piece)
            note({pc, at - r.shift + done, kind, (uint8_t)piece, (uint16_t)i});
        return;
    }
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))  // for traffic.py
#define PC __builtin_return_address(0)
extern "C" {
// Before a launch: memory that counts as if it began at a multiple of ALIGNED, as CuPy's blocks do.
EXPORT void hc_traffic_allocation(void* p, size_t n) {
    allocations.push_back({(uintptr_t)p, (uintptr_t)p + n});
}
EXPORT void hc_watch_begin() {
    ranges.clear();
    rows.clear();
    for (auto& t : trace) t.clear();
}
EXPORT void hc_watch_range(void* p, size_t n, int shared) {
    Range r{(uintptr_t)p, (uintptr_t)p + n, 0, shared != 0, {}, {}};
    for (auto [begin, end] : allocations)
        if (begin <= r.begin && r.begin < end) r.shift = begin % ALIGNED;
    if (!shared)
        for (Unique* u : {&r.read, &r.written}) {
            u->seen.resize(n);
            u->sector_seen.resize(n / SECTOR + 2);
        }
    ranges.push_back(std::move(r));
}
void hc_watch_allow(void*, size_t) {}
void hc_watch_block() {
    run_warps();
    epoch = 0;
}

// After a launch: twelve numbers about each instruction and array, five about each array. Both are
// valid until the next launch. A pc is counted from the start of the library.
EXPORT size_t hc_traffic_accesses(const uint64_t** table) {
    static std::vector<uint64_t> out;
    run_warps();
    Dl_info library{};
    dladdr((void*)&hc_traffic_accesses, &library);
    out.clear();
    for (auto& [key, r] : rows) {
        auto [pc, range, kind, size] = key;
        out.insert(out.end(), {(uint64_t)pc - (uint64_t)library.dli_fbase, range, kind, size,
                               r.requests, r.lanes, r.bytes, r.distinct, r.sectors, r.least,
                               r.passes, r.groups});
    }
    *table = out.data();
    return rows.size();
}
EXPORT size_t hc_traffic_arrays(const uint64_t** table) {
    static std::vector<uint64_t> out;
    run_warps();
    out.clear();
    for (auto& r : ranges) {
        out.push_back(r.shared);
        for (const Unique* u : {&r.read, &r.written})
            out.insert(out.end(), {u->bytes, u->sectors});
    }
    *table = out.data();
    allocations.clear();
    return ranges.size();
}

void __sanitizer_cov_trace_pc() {
    if (hc_rt.active) note({PC, 0, MOVE, 0, 0});
}

#define ACCESSES(n)                                                      \
    void __tsan_read##n(void* p) { access(p, n, false, PC); }            \
    void __tsan_write##n(void* p) { access(p, n, true, PC); }            \
    void __tsan_unaligned_read##n(void* p) { access(p, n, false, PC); }  \
    void __tsan_unaligned_write##n(void* p) { access(p, n, true, PC); }
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
void __tsan_read_range(void* p, size_t n) { access(p, n, false, PC, false); }
void __tsan_write_range(void* p, size_t n) { access(p, n, true, PC, false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
}
