// What the kernels share: how an image is described, halves as floats, and an order of values that leaves no ties.
//
// Results must not depend on which thread comes first, so values are compared as keys: the value's rank in the upper
// half, and the complement of its index in the lower. All keys of a row differ, the largest is the lowest index among
// the largest values, and 0 is smaller than every key. Only C++ that NVRTC takes: no standard headers.
#pragma once

#include <cuda_fp16.h>

typedef unsigned long long Key;

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

// One image of a micro-batch; `kernels.operation.IMAGE`. No rows: no image.
struct Image {
    long long offset;
    int rows;
    int columns;
};

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(__half value) { return __half2float(value); }

__device__ __forceinline__ void store(float* place, float value) { *place = value; }
__device__ __forceinline__ void store(__half* place, float value) { *place = __float2half_rn(value); }

// Where a value stands among all floats, from 1: -0 beside +0, and what is not a number above everything.
__device__ __forceinline__ unsigned rank_of(float value) {
    const unsigned bits = __float_as_uint(__fadd_rn(value, 0.0f));
    const unsigned rank = bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
    return value != value ? 0xffffffffu : rank;  // chosen, not branched: loads that follow need not wait
}

// The same for the value's magnitude.
__device__ __forceinline__ unsigned magnitude_rank_of(float value) {
    const unsigned rank = (__float_as_uint(value) & 0x7fffffffu) + 1u;
    return value != value ? 0xffffffffu : rank;
}

__device__ __forceinline__ Key key_of(unsigned rank, unsigned index) {
    return static_cast<Key>(rank) << 32 | static_cast<Key>(~index);
}
__device__ __forceinline__ unsigned index_of(Key key) { return ~static_cast<unsigned>(key); }

__device__ __forceinline__ Key larger(Key a, Key b) { return a > b ? a : b; }

// The best value that a thread has seen, which looks at its values in ascending order of their indices.
struct Best {
    unsigned rank = 0, index = 0;

    __device__ __forceinline__ void see(unsigned other_rank, unsigned other_index) {
        const bool better = other_rank > rank;
        rank = better ? other_rank : rank;
        index = better ? other_index : index;
    }
    __device__ __forceinline__ Key key() const { return rank == 0 ? 0 : key_of(rank, index); }
};

// The largest of the warp's keys, in every lane.
__device__ __forceinline__ Key warp_largest(Key key) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) key = larger(key, __shfl_xor_sync(ALL_LANES, key, lanes));
    return key;
}

// The sum over the warp in every lane, always added in the same order.
__device__ __forceinline__ float warp_sum(float value) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2)
        value = __fadd_rn(value, __shfl_xor_sync(ALL_LANES, value, lanes));
    return value;
}

// The values that 16 bytes hold.
template <typename T>
struct Pack;
template <>
struct Pack<float> {
    static constexpr int SIZE = 4;
    static __device__ __forceinline__ void unpack(const uint4& bits, float* values) {
        values[0] = __uint_as_float(bits.x);
        values[1] = __uint_as_float(bits.y);
        values[2] = __uint_as_float(bits.z);
        values[3] = __uint_as_float(bits.w);
    }
};
template <>
struct Pack<__half> {
    static constexpr int SIZE = 8;
    static __device__ __forceinline__ void unpack(const uint4& bits, float* values) {
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            values[2 * word] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[word] & 0xffffu)));
            values[2 * word + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[word] >> 16)));
        }
    }
};

// Loads of a thread under way at the same time: enough to keep the memory busy.
constexpr unsigned PACKS_AT_ONCE = 4;

// Call `visit(index, value)` for this thread's share of `count` values, indices ascending, 16 bytes a load.
//
// A row may begin at any element, so what lies before the first and behind the last whole 16 bytes is read singly.
template <typename T, typename Visit>
__device__ __forceinline__ void visit_values(const T* __restrict__ values, unsigned count, unsigned thread,
                                             unsigned threads, Visit visit) {
    constexpr unsigned SIZE = Pack<T>::SIZE;
    const unsigned past = static_cast<unsigned>(reinterpret_cast<Key>(values) / sizeof(T)) % SIZE;
    const unsigned head = min(count, (SIZE - past) % SIZE);
    if (thread < head) visit(thread, as_float(values[thread]));
    const uint4* __restrict__ packs = reinterpret_cast<const uint4*>(values + head);
    const unsigned whole = (count - head) / SIZE;
    const auto visit_pack = [&](unsigned pack, const uint4& bits) {
        float unpacked[SIZE];
        Pack<T>::unpack(bits, unpacked);
#pragma unroll
        for (unsigned at = 0; at < SIZE; ++at) visit(head + pack * SIZE + at, unpacked[at]);
    };
    unsigned pack = thread;
    for (; pack + (PACKS_AT_ONCE - 1) * threads < whole; pack += PACKS_AT_ONCE * threads) {
        uint4 bits[PACKS_AT_ONCE];
#pragma unroll
        for (unsigned turn = 0; turn < PACKS_AT_ONCE; ++turn) bits[turn] = packs[pack + turn * threads];
#pragma unroll
        for (unsigned turn = 0; turn < PACKS_AT_ONCE; ++turn) visit_pack(pack + turn * threads, bits[turn]);
    }
    for (; pack < whole; pack += threads) visit_pack(pack, packs[pack]);
    for (unsigned at = head + whole * SIZE + thread; at < count; at += threads) visit(at, as_float(values[at]));
}
