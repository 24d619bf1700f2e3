// Fit images into a fixed frame with their aspect kept; the meaning is kernels/letterbox_normalize.py's.
//
// Grid: blocks of columns, bands of rows, items. Block: COLUMNS_PER_BLOCK threads.
#include "resize.cuh"

// a * b / c, halves up, at least 1: where one side fills the frame, the other's length.
__device__ __forceinline__ int scaled(int a, int b, int c) {
    const long long rounded = (2LL * a * b + c) / (2LL * c);
    return static_cast<int>(max(rounded, 1LL));
}

__device__ __forceinline__ Placement letterbox(const Image& image, int height, int width, int centred, int enlarge) {
    Placement place = {0, 0, 0, 0};
    if (image.rows == 0) return place;
    place.rows = height;
    place.columns = width;
    if (!enlarge && image.rows <= height && image.columns <= width) {
        place.rows = image.rows;
        place.columns = image.columns;
    } else if (static_cast<long long>(width) * image.rows >= static_cast<long long>(height) * image.columns) {
        place.columns = scaled(image.columns, height, image.rows);
    } else {
        place.rows = scaled(image.rows, width, image.columns);
    }
    if (centred) {
        place.top = (height - place.rows) / 2;
        place.left = (width - place.columns) / 2;
    }
    return place;
}

template <typename T>
__device__ __forceinline__ void letterbox_normalize(Placement* place, const unsigned char* __restrict__ pixels,
                                                    const Image* __restrict__ images, T* __restrict__ input, int height,
                                                    int width, int centred, int enlarge, Colours colours) {
    const Image image = images[blockIdx.z];
    if (threadIdx.x == 0) *place = letterbox(image, height, width, centred, enlarge);
    __syncthreads();
    if (image.rows == 0) {
        for (int channel = 0; channel < CHANNELS; ++channel) colours.fill[channel] = 0.0f;
    }
    T* row = input + static_cast<long long>(blockIdx.z) * CHANNELS * height * width;
    resize_normalize(pixels + image.offset, image, *place, colours, row, height, width);
}

extern "C" __global__ void __launch_bounds__(COLUMNS_PER_BLOCK)
    letterbox_normalize_float32(const unsigned char* __restrict__ pixels, const Image* __restrict__ images,
                                float* __restrict__ input, int height, int width, int centred, int enlarge,
                                int reversed, float factor0, float factor1, float factor2, float offset0, float offset1,
                                float offset2, float fill0, float fill1, float fill2) {
    __shared__ Placement place;
    const Colours colours = {
        {factor0, factor1, factor2}, {offset0, offset1, offset2}, {fill0, fill1, fill2}, reversed != 0};
    letterbox_normalize(&place, pixels, images, input, height, width, centred, enlarge, colours);
}

extern "C" __global__ void __launch_bounds__(COLUMNS_PER_BLOCK)
    letterbox_normalize_float16(const unsigned char* __restrict__ pixels, const Image* __restrict__ images,
                                __half* __restrict__ input, int height, int width, int centred, int enlarge,
                                int reversed, float factor0, float factor1, float factor2, float offset0, float offset1,
                                float offset2, float fill0, float fill1, float fill2) {
    __shared__ Placement place;
    const Colours colours = {
        {factor0, factor1, factor2}, {offset0, offset1, offset2}, {fill0, fill1, fill2}, reversed != 0};
    letterbox_normalize(&place, pixels, images, input, height, width, centred, enlarge, colours);
}
