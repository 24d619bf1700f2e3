// The likeliest class of every step, and its probability; the meaning is kernels/ctc_greedy_decode.py's.
//
// Grid: steps, items. Block: THREADS, which share one row of classes and agree on its largest key.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int BLOCKS_AT_ONCE = 6;  // 1536 threads, all that most multiprocessors run: at most 40 registers each

template <typename T>
__device__ __forceinline__ void best_class(Key* warps, const T* __restrict__ output, int* __restrict__ best,
                                           float* __restrict__ probability, int classes) {
    const long long step = static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x;
    const T* values = output + step * classes;
    Best seen;
    visit_values(values, static_cast<unsigned>(classes), threadIdx.x, THREADS,
                 [&](unsigned at, float value) { seen.see(rank_of(value), at); });
    Key key = warp_largest(seen.key());
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = key;
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    key = warp_largest(threadIdx.x < THREADS / WARP ? warps[threadIdx.x] : 0);
    if (threadIdx.x == 0) {
        best[step] = static_cast<int>(index_of(key));
        probability[step] = as_float(values[index_of(key)]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    ctc_greedy_decode_float32(const float* __restrict__ output, int* __restrict__ best, float* __restrict__ probability,
                              int classes) {
    __shared__ Key warps[THREADS / WARP];
    best_class(warps, output, best, probability, classes);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE)
    ctc_greedy_decode_float16(const __half* __restrict__ output, int* __restrict__ best,
                              float* __restrict__ probability, int classes) {
    __shared__ Key warps[THREADS / WARP];
    best_class(warps, output, best, probability, classes);
}
