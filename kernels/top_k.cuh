// The k largest keys of a row, in two launches, whatever its length.
//
// First launch: the row is cut into groups, and each warp finds the largest key of one group. It reads every value once
// and is bound by memory alone. Second launch, one block an item: the k groups with the largest keys hold all of the k
// largest values (their own largest are k keys above everything in any other group), so only those groups are read
// again. No key occurs twice, so the outcome does not depend on the order in which threads come.
#pragma once

#include "common.cuh"

constexpr int GROUPS_PER_BLOCK = 8;
constexpr int GROUP_THREADS = GROUPS_PER_BLOCK * WARP;
constexpr int SELECT_THREADS = 512;
constexpr int KEYS_PER_THREAD = 32;
constexpr int MAX_K = 128;

// How many groups of 2^shift values a row has.
__device__ __forceinline__ int groups_of(int count, int shift) { return ((count - 1) >> shift) + 1; }

// The second launch's shared memory.
struct Selection {
    Key best[MAX_K];                              // what was found, largest first
    Key groups[MAX_K];                            // the groups' keys, while values are looked at
    Key exchange[SELECT_THREADS];                 // for sorting
    Key candidates[MAX_K * KEYS_PER_THREAD];      // of one round
    Key threshold;                                // keys below it are not among the k largest
    int count;                                    // candidates
};

// Sort one key of each of the block's SELECT_THREADS threads, the largest first (Batcher's bitonic network).
__device__ __forceinline__ Key block_sort(Key key, Key* exchange) {
    const unsigned thread = threadIdx.x;
    for (unsigned size = 2; size <= SELECT_THREADS; size *= 2) {
        for (unsigned stride = size / 2; stride > 0; stride /= 2) {
            Key other;
            if (stride < WARP) {
                other = __shfl_xor_sync(ALL_LANES, key, static_cast<int>(stride));
            } else {
                exchange[thread] = key;
                __syncthreads();
                other = exchange[thread ^ stride];
                __syncthreads();
            }
            const bool descending = (thread & size) == 0, first = (thread & stride) == 0;
            key = (descending == first) == (key > other) ? key : other;
        }
    }
    return key;
}

// The k largest of `count` keys that `load(at)` gives (0: none), into `shared.best`; 0 where there are fewer than k.
//
// A round looks at KEYS_PER_THREAD keys a thread. The k-th largest of the threads' own largest bounds from below what
// can be among the k largest, and at most k threads hold anything above it: that many candidates fit.
template <typename Load>
__device__ __forceinline__ void block_top_k(long long count, int k, Load load, Selection& shared) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < k) shared.best[thread] = 0;
    __syncthreads();
    for (long long begin = thread; begin - thread < count; begin += SELECT_THREADS * KEYS_PER_THREAD) {
        const long long end = min(count, begin + SELECT_THREADS * KEYS_PER_THREAD);
        Key largest = 0;
#pragma unroll 4
        for (long long at = begin; at < end; at += SELECT_THREADS) largest = larger(largest, load(at));
        const Key sorted = block_sort(largest, shared.exchange);
        if (thread == k - 1) shared.threshold = larger(sorted, shared.best[k - 1]);
        if (thread == 0) shared.count = 0;
        __syncthreads();
        const Key threshold = shared.threshold;
        if (largest != 0 && largest >= threshold) {
            for (long long at = begin; at < end; at += SELECT_THREADS) {
                const Key key = load(at);
                if (key != 0 && key >= threshold) shared.candidates[atomicAdd(&shared.count, 1)] = key;
            }
        }
        __syncthreads();
        for (int merged = 0; merged < shared.count; merged += SELECT_THREADS - k) {
            const int at = merged + thread - k;
            Key key = 0;
            if (thread < k) key = shared.best[thread];
            else if (at < shared.count) key = shared.candidates[at];
            key = block_sort(key, shared.exchange);
            if (thread < k) shared.best[thread] = key;
        }
    }
    __syncthreads();
}

// The k largest of a row of `count` values, given the largest key of each of its groups of 2^shift values.
template <typename T, typename Rank>
__device__ __forceinline__ void row_top_k(const T* __restrict__ values, const Key* __restrict__ groups, int count,
                                          int shift, int k, Rank rank, Selection& shared) {
    block_top_k(groups_of(count, shift), k, [&](long long at) { return groups[at]; }, shared);
    if (static_cast<int>(threadIdx.x) < k) shared.groups[threadIdx.x] = shared.best[threadIdx.x];
    const auto load = [&](long long at) -> Key {  // not before block_top_k's first barrier
        const Key largest = shared.groups[at >> shift];
        const long long begin = static_cast<long long>(index_of(largest) >> shift) << shift;
        const long long index = begin + (at & ((1LL << shift) - 1));
        if (largest == 0 || index >= count) return 0;
        return key_of(rank(as_float(values[index])), static_cast<unsigned>(index));
    };
    block_top_k(static_cast<long long>(k) << shift, k, load, shared);
}
