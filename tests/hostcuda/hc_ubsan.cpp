// hc_ubsan.cpp - what g++ -fsanitize=... calls where C++ leaves the result open: a fault, reported
// like every other one. On a GPU nothing happens, or something else than the author meant.
//
// The layouts are those of libubsan, which is not linked.
#include <cstdint>
#include <cstdio>

struct Place {
    const char* file;
    uint32_t line, column;
};
struct Type {
    uint16_t is_float, info;  // of an integer: bit 0: signed; above: log2 of its bits
    char name[1];             // 'int'
};
extern "C" void hc_fail(const char* what, const void* at);

namespace {

struct Value {
    char text[24];
    // Up to 64 bits come in the handle itself; beyond that it is an address.
    Value(const Type* type, uintptr_t handle) {
        const unsigned bits = 1u << (type->info >> 1);
        if (type->is_float || bits > 64)
            snprintf(text, sizeof text, "a number");
        else if (type->info & 1)
            snprintf(text, sizeof text, "%lld", (long long)(int64_t(handle << (64 - bits)) >> (64 - bits)));
        else
            snprintf(text, sizeof text, "%llu", (unsigned long long)handle);
    }
};

template <class... A> void report(const Place& place, const char* format, A... a) {
    char what[120], message[200];
    snprintf(what, sizeof what, format, a...);
    snprintf(message, sizeof message, "%s in line %u", what, place.line);
    hc_fail(message, nullptr);
}

}  // namespace

extern "C" {

struct Misaligned { Place place; Type* type; };
void __ubsan_handle_type_mismatch_v1_abort(Misaligned* d, void* at) {
    report(d->place, "misaligned access to %s at %p", d->type->name, at);
}

struct Overflow { Place place; Type* type; };
#define OVERFLOW(what, sign)                                                                  \
    void __ubsan_handle_##what##_overflow_abort(Overflow* d, uintptr_t a, uintptr_t b) {      \
        report(d->place, "overflow: %s %s %s does not fit %s", Value(d->type, a).text, sign, \
               Value(d->type, b).text, d->type->name);                                        \
    }
OVERFLOW(add, "+") OVERFLOW(sub, "-") OVERFLOW(mul, "*") OVERFLOW(divrem, "/")
void __ubsan_handle_negate_overflow_abort(Overflow* d, uintptr_t a) {
    report(d->place, "overflow: -(%s) does not fit %s", Value(d->type, a).text, d->type->name);
}

struct Shift { Place place; Type *left, *right; };
void __ubsan_handle_shift_out_of_bounds_abort(Shift* d, uintptr_t a, uintptr_t by) {
    report(d->place, "undefined shift: %s of type %s by %s", Value(d->left, a).text,
           d->left->name, Value(d->right, by).text);
}

struct Index { Place place; Type *array, *index; };
void __ubsan_handle_out_of_bounds_abort(Index* d, uintptr_t index) {
    report(d->place, "index %s out of bounds for %s", Value(d->index, index).text, d->array->name);
}

struct Cast { Place place; Type *from, *to; };
void __ubsan_handle_float_cast_overflow_abort(Cast* d, uintptr_t) {
    report(d->place, "%s out of the range of %s", d->from->name, d->to->name);
}

struct Nowhere { Place place; };
void __ubsan_handle_missing_return(Nowhere* d) { report(d->place, "no return value"); }
void __ubsan_handle_builtin_unreachable(Nowhere* d) { report(d->place, "unreachable code reached"); }
}
