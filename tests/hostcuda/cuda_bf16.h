// bfloat16 on the host: stored, converted and compared as on the device; arithmetic is refused,
// as in cuda_fp16.h.
#pragma once
struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float v) {  // to nearest, ties to even; every NaN is the device's one
        unsigned u;
        __builtin_memcpy(&u, &v, 4);
        bits = v != v ? 0x7FFF : (unsigned short)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
    }
    operator float() const {
        const unsigned u = (unsigned)bits << 16;
        float v;
        __builtin_memcpy(&v, &u, 4);
        return v;
    }
};
__nv_bfloat16 operator+(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator-(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator*(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator/(__nv_bfloat16, __nv_bfloat16) = delete;
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __nv_bfloat16 __float2bfloat16(float v) { return v; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return v; }
