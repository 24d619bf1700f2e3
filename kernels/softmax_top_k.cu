// The k likeliest classes of each item; the meaning is kernels/softmax_top_k.py's.
//
// First launch: grid of groups / GROUPS_PER_BLOCK, items; GROUP_THREADS. Second: grid of items; SELECT_THREADS.
// The softmax's denominator is summed up beside the search, each group against its own largest value (the online
// softmax of Milakov and Gimelshein, 2018) and always in the same order, so equal rows give equal bits.
#include "top_k.cuh"

constexpr int VALUES_PER_LANE = 8;
constexpr int GROUP_SHIFT = 8;
constexpr int GROUP = 1 << GROUP_SHIFT;
static_assert(GROUP == VALUES_PER_LANE * WARP, "a warp holds its group in registers");

template <typename T>
__device__ __forceinline__ void look_at_group(const T* __restrict__ output, Key* __restrict__ keys,
                                              float* __restrict__ sums, int classes) {
    const int groups = groups_of(classes, GROUP_SHIFT);
    const int at = static_cast<int>(blockIdx.x) * GROUPS_PER_BLOCK + static_cast<int>(threadIdx.x) / WARP;
    if (at >= groups) return;  // a whole warp
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const T* row = output + static_cast<long long>(blockIdx.y) * classes;
    const float lowest = __uint_as_float(0xff800000u);  // minus infinity
    float values[VALUES_PER_LANE];
    Key key = 0;
#pragma unroll
    for (int turn = 0; turn < VALUES_PER_LANE; ++turn) {
        const int place = at * GROUP + turn * WARP + lane;
        values[turn] = place < classes ? as_float(row[place]) : lowest;
    }
#pragma unroll
    for (int turn = 0; turn < VALUES_PER_LANE; ++turn) {
        const int place = at * GROUP + turn * WARP + lane;
        const Key found = key_of(rank_of(values[turn]), static_cast<unsigned>(place));
        key = larger(key, place < classes ? found : 0);
    }
    key = warp_largest(key);
    const float largest = as_float(row[index_of(key)]);
    float sum = 0.0f;
    if (largest != lowest) {  // else this group adds nothing, and the differences are not numbers
#pragma unroll
        for (int turn = 0; turn < VALUES_PER_LANE; ++turn) sum = __fadd_rn(sum, expf(__fsub_rn(values[turn], largest)));
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        keys[static_cast<long long>(blockIdx.y) * groups + at] = key;
        sums[static_cast<long long>(blockIdx.y) * groups + at] = sum;
    }
}

// SCRATCH holds the groups' keys of all items, and behind them the groups' sums.
__device__ __forceinline__ float* sums_in(Key* scratch, int classes, int items) {
    return reinterpret_cast<float*>(scratch + static_cast<long long>(items) * groups_of(classes, GROUP_SHIFT));
}

// The sum of exp(value - largest) over a whole row, in every thread.
template <typename T>
__device__ __forceinline__ float denominator(const T* __restrict__ row, const Key* __restrict__ keys,
                                             const float* __restrict__ sums, int groups, float largest, float* warps) {
    float sum = 0.0f;
    for (int at = static_cast<int>(threadIdx.x); at < groups; at += SELECT_THREADS) {
        const float difference = __fsub_rn(as_float(row[index_of(keys[at])]), largest);
        sum = __fadd_rn(sum, __fmul_rn(sums[at], expf(difference)));
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int warp = 0; warp < SELECT_THREADS / WARP; ++warp) sum = __fadd_rn(sum, warps[warp]);
    return sum;
}

template <typename T>
__device__ __forceinline__ void select_classes(Selection& shared, float* warps, const T* __restrict__ output,
                                               const Key* __restrict__ keys, const float* __restrict__ sums,
                                               int* __restrict__ best, float* __restrict__ probability, int classes,
                                               int k, int softmax) {
    const int groups = groups_of(classes, GROUP_SHIFT);
    const long long item = blockIdx.x;
    const T* row = output + item * classes;
    const auto rank = [](float value) { return rank_of(value); };
    row_top_k(row, keys + item * groups, classes, GROUP_SHIFT, k, rank, shared);
    const float largest = as_float(row[index_of(shared.best[0])]);
    float sum = 1.0f;
    if (softmax) sum = denominator(row, keys + item * groups, sums + item * groups, groups, largest, warps);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= k) return;
    const unsigned index = index_of(shared.best[thread]);
    const float value = as_float(row[index]);
    best[item * k + thread] = static_cast<int>(index);
    probability[item * k + thread] = softmax ? __fdiv_rn(expf(__fsub_rn(value, largest)), sum) : value;
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    softmax_top_k_groups_float32(const float* __restrict__ output, Key* __restrict__ scratch, int classes, int items) {
    look_at_group(output, scratch, sums_in(scratch, classes, items), classes);
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    softmax_top_k_groups_float16(const __half* __restrict__ output, Key* __restrict__ scratch, int classes, int items) {
    look_at_group(output, scratch, sums_in(scratch, classes, items), classes);
}

extern "C" __global__ void __launch_bounds__(SELECT_THREADS, 1)
    softmax_top_k_float32(const float* __restrict__ output, Key* __restrict__ scratch, int* __restrict__ best,
                          float* __restrict__ probability, int classes, int items, int k, int softmax) {
    __shared__ Selection shared;
    __shared__ float warps[SELECT_THREADS / WARP];
    select_classes(shared, warps, output, scratch, sums_in(scratch, classes, items), best, probability, classes, k,
                   softmax);
}

extern "C" __global__ void __launch_bounds__(SELECT_THREADS, 1)
    softmax_top_k_float16(const __half* __restrict__ output, Key* __restrict__ scratch, int* __restrict__ best,
                          float* __restrict__ probability, int classes, int items, int k, int softmax) {
    __shared__ Selection shared;
    __shared__ float warps[SELECT_THREADS / WARP];
    select_classes(shared, warps, output, scratch, sums_in(scratch, classes, items), best, probability, classes, k,
                   softmax);
}
