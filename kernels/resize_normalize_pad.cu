// Fit text lines into a recogniser's height and bucket width; the meaning is kernels/resize_normalize_pad.py's.
//
// Grid: blocks of columns, bands of rows, items. Block: COLUMNS_PER_BLOCK threads.
#include "resize.cuh"

extern "C" __global__ void __launch_bounds__(COLUMNS_PER_BLOCK)
    resize_normalize_pad(const unsigned char* __restrict__ pixels, const Image* __restrict__ images,
                         float* __restrict__ input, int height, int width, float factor, float offset) {
    __shared__ Placement place;
    const Image image = images[blockIdx.z];
    if (threadIdx.x == 0) {
        long long fitted = 0;
        if (image.rows > 0) fitted = (static_cast<long long>(height) * image.columns + image.rows - 1) / image.rows;
        place = {0, 0, image.rows > 0 ? height : 0, static_cast<int>(min(fitted, static_cast<long long>(width)))};
    }
    __syncthreads();
    const Colours colours = {{factor, factor, factor}, {offset, offset, offset}, {0.0f, 0.0f, 0.0f}, true};
    float* row = input + static_cast<long long>(blockIdx.z) * CHANNELS * height * width;
    resize_normalize(pixels + image.offset, image, place, colours, row, height, width);
}
