// The part of CUDA's half-precision header that the kernels use, on the compiler's own IEEE binary16.
#pragma once

#include <cstring>

using __half = _Float16;

inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
inline __half __ushort_as_half(unsigned short bits) {
    __half value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
