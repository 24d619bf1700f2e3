// Where a tensor is largest, and what stands there; the meaning is kernels/tensor_fingerprint.py's.
//
// First launch: grid of groups / GROUPS_PER_BLOCK, items; GROUP_THREADS. Second: grid of items; SELECT_THREADS.
#include "top_k.cuh"

template <typename T>
__device__ __forceinline__ void look_at_group(const T* __restrict__ output, Key* __restrict__ keys, int count,
                                              int shift) {
    const int groups = groups_of(count, shift);
    const int at = static_cast<int>(blockIdx.x) * GROUPS_PER_BLOCK + static_cast<int>(threadIdx.x) / WARP;
    if (at >= groups) return;  // a whole warp
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const int begin = at << shift;
    const T* values = output + static_cast<long long>(blockIdx.y) * count + begin;
    Best seen;
    visit_values(values, static_cast<unsigned>(min(1 << shift, count - begin)), lane, WARP,
                 [&](unsigned place, float value) {
                     seen.see(magnitude_rank_of(value), static_cast<unsigned>(begin) + place);
                 });
    const Key key = warp_largest(seen.key());
    if (lane == 0) keys[static_cast<long long>(blockIdx.y) * groups + at] = key;
}

template <typename T>
__device__ __forceinline__ void select_values(Selection& shared, const T* __restrict__ output,
                                              const Key* __restrict__ keys, int* __restrict__ indices,
                                              float* __restrict__ found, int count, int shift, int k) {
    const long long item = blockIdx.x;
    const int groups = groups_of(count, shift);
    const T* values = output + item * count;
    const auto rank = [](float value) { return magnitude_rank_of(value); };
    row_top_k(values, keys + item * groups, count, shift, k, rank, shared);
    const int thread = static_cast<int>(threadIdx.x);
    // The complement of an index, the largest first: indices ascending. No complement is 0.
    const Key complement = thread < k ? static_cast<Key>(static_cast<unsigned>(shared.best[thread])) : 0;
    const Key sorted = block_sort(complement, shared.exchange);
    if (thread >= k) return;
    const unsigned index = index_of(sorted);
    indices[item * k + thread] = static_cast<int>(index);
    found[item * k + thread] = as_float(values[index]);
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    tensor_fingerprint_groups_float32(const float* __restrict__ output, Key* __restrict__ keys, int count, int shift) {
    look_at_group(output, keys, count, shift);
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    tensor_fingerprint_groups_float16(const __half* __restrict__ output, Key* __restrict__ keys, int count, int shift) {
    look_at_group(output, keys, count, shift);
}

extern "C" __global__ void __launch_bounds__(SELECT_THREADS, 1)
    tensor_fingerprint_float32(const float* __restrict__ output, const Key* __restrict__ keys,
                               int* __restrict__ indices, float* __restrict__ found, int count, int shift, int k) {
    __shared__ Selection shared;
    select_values(shared, output, keys, indices, found, count, shift, k);
}

extern "C" __global__ void __launch_bounds__(SELECT_THREADS, 1)
    tensor_fingerprint_float16(const __half* __restrict__ output, const Key* __restrict__ keys,
                               int* __restrict__ indices, float* __restrict__ found, int count, int shift, int k) {
    __shared__ Selection shared;
    select_values(shared, output, keys, indices, found, count, shift, k);
}
