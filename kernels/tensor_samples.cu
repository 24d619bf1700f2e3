// A few values of a tensor, always at the same places; the meaning is kernels/tensor_samples.py's.
//
// Grid of items; THREADS, a thread for each value. The places are SplitMix64's for the states STEP, 2 STEP, …
#include "common.cuh"

constexpr int THREADS = 64;
constexpr unsigned long long STEP = 0x9E3779B97F4A7C15ull;

__device__ __forceinline__ unsigned long long mixed(unsigned long long word) {
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9ull;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBull;
    return word ^ (word >> 31);
}

template <typename T>
__device__ __forceinline__ void take_samples(const T* __restrict__ output, float* __restrict__ found, int count,
                                             int k) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= k) return;
    const unsigned long long place = mixed((static_cast<unsigned long long>(thread) + 1) * STEP) % count;
    const long long item = blockIdx.x;
    found[item * k + thread] = as_float(output[item * count + static_cast<long long>(place)]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    tensor_samples_float32(const float* __restrict__ output, float* __restrict__ found, int count, int k) {
    take_samples(output, found, count, k);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    tensor_samples_float16(const __half* __restrict__ output, float* __restrict__ found, int count, int k) {
    take_samples(output, found, count, k);
}
