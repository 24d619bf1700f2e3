// CUDA C++ on the host: what a kernel source needs of the CUDA compiler, for g++.
//
// The same .cu file that nvcc compiles is compiled here unchanged: this header is put in front of it (-include), and
// cuda_fp16.h beside it stands for CUDA's. Each CUDA thread runs as a fiber (fibers.cpp). A thread runs alone until it
// meets the others at a barrier or in a warp operation; in which order threads get their turn is the caller's choice,
// so what depends on the order shows up as different results.
//
// Modelled: thread and block indices, static shared memory (poisoned before each block), block barriers, warp shuffles,
// votes and barriers with masks, atomics. A barrier that not all threads reach, a warp operation with a missing thread
// and a deadlock fail the launch and say where. Not modelled: the memory model, blocks that run at the same time, two
// warps' instructions interleaved between barriers, contraction of multiply and add (kernels name each rounding).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace shim {

enum class Meeting : int { block, warp_barrier, shuffle, ballot };

struct Thread {
    dim3 index;
    int lane = 0;
};

extern Thread* current;
extern dim3 block_index, block_size, grid_size;

/// The lane so many further on; this one where there is none.
inline int lane_below(int lanes) { return current->lane + lanes < 32 ? current->lane + lanes : current->lane; }

/// Wait for the other threads at this line. `value` goes in (a shuffled value, a vote), and what comes out returns.
std::uint64_t meet(Meeting kind, unsigned mask, std::uint64_t value, int source_lane, const char* file, int line);

/// Run a kernel's body once for every thread of the grid; a failure is kept for driveway_shim_failure.
void run(const std::function<void()>& body, const unsigned grid[3], const unsigned block[3], std::size_t shared_bytes);

template <typename T>
T shuffle(unsigned mask, T value, int source_lane, const char* file, int line) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable<T>::value, "a value of 8 bytes");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = meet(Meeting::shuffle, mask, bits, source_lane, file, line);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

/// Call a kernel with arguments packed as cuLaunchKernel's buffer has them: each at its natural alignment.
template <typename... Arguments, std::size_t... At>
void call(void (*kernel)(Arguments...), const char* packed, std::index_sequence<At...>) {
    std::tuple<std::remove_const_t<Arguments>...> arguments;
    std::size_t offset = 0;
    const auto take = [&](auto& argument) {
        offset = (offset + alignof(decltype(argument)) - 1) / alignof(decltype(argument)) * alignof(decltype(argument));
        std::memcpy(static_cast<void*>(&argument), packed + offset, sizeof argument);
        offset += sizeof argument;
    };
    (take(std::get<At>(arguments)), ...);
    kernel(std::get<At>(arguments)...);
}

template <typename... Arguments>
void launch(void (*kernel)(Arguments...), const char* packed, const unsigned* grid, const unsigned* block,
            std::size_t shared_bytes) {
    run([=] { call(kernel, packed, std::index_sequence_for<Arguments...>{}); }, grid, block, shared_bytes);
}

}  // namespace shim

/// The entry point of one kernel, for the stand-in driver and for tests/cuda/host_kernels.py.
#define DRIVEWAY_SHIM(kernel)                                                                                     \
    extern "C" __attribute__((visibility("default"))) void kernel##__shim(const char* packed_arguments,          \
                                                                          const unsigned* grid,                  \
                                                                          const unsigned* block,                 \
                                                                          std::size_t shared_bytes) {            \
        shim::launch(&kernel, packed_arguments, grid, block, shared_bytes);                                      \
    }

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
// All shared variables lie side by side in one section, so that the shim can poison them before each block.
#define __shared__ static __attribute__((section("driveway_shared")))

#define threadIdx (shim::current->index)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)

// Macros, so that each call knows its line: threads that meet at different lines have diverged.
#define __syncthreads() ((void)shim::meet(shim::Meeting::block, 0, 0, 0, __FILE__, __LINE__))
#define __syncwarp() ((void)shim::meet(shim::Meeting::warp_barrier, 0xffffffffu, 0, 0, __FILE__, __LINE__))
#define __ballot_sync(mask, predicate) \
    (static_cast<unsigned>(shim::meet(shim::Meeting::ballot, mask, (predicate) != 0, 0, __FILE__, __LINE__)))
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __shfl_sync(mask, value, source) (shim::shuffle(mask, value, (source)&31, __FILE__, __LINE__))
#define __shfl_xor_sync(mask, value, bits) \
    (shim::shuffle(mask, value, (shim::current->lane ^ (bits)) & 31, __FILE__, __LINE__))
#define __shfl_down_sync(mask, value, lanes) (shim::shuffle(mask, value, shim::lane_below(lanes), __FILE__, __LINE__))

using std::max;
using std::min;

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned __brev(unsigned bits) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= ((bits >> bit) & 1u) << (31 - bit);
    return reversed;
}

template <typename T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address = before + value;
    return before;
}
