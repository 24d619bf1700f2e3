// What the shim itself is tried with: small kernels that are right, and some with a fault that it must report.
#include <cuda_fp16.h>

constexpr unsigned ALL = 0xffffffffu;

struct Indices {
    unsigned thread[3], block[3];
};

extern "C" __global__ void probe_indices(Indices* seen) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    seen[block * blockDim.x * blockDim.y * blockDim.z + thread] = {{threadIdx.x, threadIdx.y, threadIdx.z},
                                                                   {blockIdx.x, blockIdx.y, blockIdx.z}};
}

extern "C" __global__ void probe_arguments(int first, const int* second, float third, int fourth, float* sums) {
    sums[0] = static_cast<float>(first) + static_cast<float>(second[0]) + third + static_cast<float>(fourth);
}

extern "C" __global__ void probe_warp_barrier(const int* values, int* out) {
    __shared__ int exchange[64];
    exchange[threadIdx.x] = values[threadIdx.x];
    __syncwarp();
    out[threadIdx.x] = exchange[threadIdx.x ^ 31u];
}

extern "C" __global__ void probe_warp(const int* values, int* out) {
    const int thread = static_cast<int>(threadIdx.x), value = values[thread];
    out[thread] = __shfl_xor_sync(ALL, value, 5);
    out[64 + thread] = __shfl_down_sync(ALL, value, 3);
    out[128 + thread] = __shfl_sync(ALL, value, 7);
    out[192 + thread] = static_cast<int>(__ballot_sync(ALL, value > 0));
    if (thread % 32 < 16) out[256 + thread] = __shfl_xor_sync(0x0000ffffu, value, 1);
    else out[256 + thread] = __any_sync(0xffff0000u, value > 0);
}

extern "C" __global__ void probe_counts(int* counts) {
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1);
    __syncthreads();
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

extern "C" __global__ void probe_poison(int* out) {
    __shared__ int never_written[4];
    out[threadIdx.x] = never_written[threadIdx.x];
    never_written[threadIdx.x] = 1;
}

extern "C" __global__ void probe_order(int* order) {
    __shared__ int turn;
    if (threadIdx.x == 0) turn = 0;
    __syncthreads();
    order[atomicAdd(&turn, 1)] = static_cast<int>(threadIdx.x);
}

extern "C" __global__ void fault_two_barriers(int* out) {
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

extern "C" __global__ void fault_missed_barrier(int* out) {
    if (threadIdx.x == 3) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

extern "C" __global__ void fault_missing_lane(int* out) {
    if (threadIdx.x == 9) return;
    out[threadIdx.x] = __shfl_xor_sync(ALL, 1, 1);
}

extern "C" __global__ void fault_barrier_beside_shuffle(int* out) {
    if (threadIdx.x < 16) __syncthreads();
    else out[threadIdx.x] = __shfl_xor_sync(ALL, 1, 1);
}

extern "C" __global__ void fault_left_out_by_its_mask(int* out) {
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1);
}

extern "C" __global__ void fault_lane_outside_the_mask(int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 16);
}

extern "C" __global__ void fault_shared_overrun(int* out) {
    __shared__ int four[4];
    for (int at = 0; at < static_cast<int>(blockDim.x); ++at) four[at] = at;
    out[0] = four[0];
}

extern "C" __global__ void fault_reads_past(const int* values, int* out) { out[0] = values[blockDim.x]; }

extern "C" __global__ void fault_writes_past(int* out) { out[blockDim.x] = 1; }
