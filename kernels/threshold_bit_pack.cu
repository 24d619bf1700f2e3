// Which pixels of a probability map are above a threshold, a bit each; the meaning is kernels/threshold_bit_pack.py's.
//
// Grid: groups of ROWS_PER_BLOCK rows, items. A warp makes one row: each vote of its lanes is 32 pixels, and four votes
// are 16 bytes that it writes together.
#include "common.cuh"

constexpr int ROWS_PER_BLOCK = 8;
constexpr int THREADS = ROWS_PER_BLOCK * WARP;
constexpr int VOTES = 4;

template <typename T>
__device__ __forceinline__ void pack_row(const T* __restrict__ output, unsigned char* __restrict__ bits,
                                         unsigned char* __restrict__ not_numbers, int rows, int columns,
                                         float threshold) {
    const int y = static_cast<int>(blockIdx.x) * ROWS_PER_BLOCK + static_cast<int>(threadIdx.x) / WARP;
    if (y >= rows) return;  // a whole warp
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const long long row = static_cast<long long>(blockIdx.y) * rows + y;
    const int bytes = (columns + 7) / 8;
    bool not_a_number = false;
    for (int begin = 0; begin < columns; begin += VOTES * WARP) {
        float values[VOTES];
#pragma unroll
        for (int vote = 0; vote < VOTES; ++vote) {
            const int x = begin + vote * WARP + lane;
            values[vote] = x < columns ? as_float(output[row * columns + x]) : threshold;
        }
        unsigned word = 0;
#pragma unroll
        for (int vote = 0; vote < VOTES; ++vote) {
            const unsigned above = __ballot_sync(ALL_LANES, values[vote] > threshold);
            not_a_number = not_a_number || values[vote] != values[vote];
            if (lane / 4 == vote) word = __brev(above);  // the first pixel is the highest bit
        }
        const int at = begin / 8 + lane;
        if (lane < VOTES * 4 && at < bytes)
            bits[row * bytes + at] = static_cast<unsigned char>(word >> (24 - 8 * (lane % 4)));
    }
    const unsigned flagged = __ballot_sync(ALL_LANES, not_a_number);
    if (lane == 0) not_numbers[row] = flagged != 0;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    threshold_bit_pack_float32(const float* __restrict__ output, unsigned char* __restrict__ bits,
                               unsigned char* __restrict__ not_numbers, int rows, int columns, float threshold) {
    pack_row(output, bits, not_numbers, rows, columns, threshold);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    threshold_bit_pack_float16(const __half* __restrict__ output, unsigned char* __restrict__ bits,
                               unsigned char* __restrict__ not_numbers, int rows, int columns, float threshold) {
    pack_row(output, bits, not_numbers, rows, columns, threshold);
}
