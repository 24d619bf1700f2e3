// An image fitted into a row of the engine's input: bilinear, normalised, planes one after the other.
//
// Each rounding is named (__fadd_rn and the like are never contracted), in the order of kernels/resizing.py, so the
// reference and the kernel agree bit for bit. A thread makes one column of ROWS_PER_THREAD rows: it needs the taps
// across only once, and where the image is enlarged it keeps the two source rows it stands between. Lanes write
// neighbouring columns. Each output is written once, whether the image reaches there or not.
#pragma once

#include "common.cuh"

constexpr int COLUMNS_PER_BLOCK = 128;
constexpr int ROWS_PER_THREAD = 8;
constexpr int CHANNELS = 3;

// Where in the output the image goes.
struct Placement {
    int top, left, rows, columns;
};

// By output channel: v becomes v * factor - offset; outside the image stands `fill`.
struct Colours {
    float factor[CHANNELS], offset[CHANNELS], fill[CHANNELS];
    bool reversed;  // the output's first channel is the image's last
};

// Between which two source pixels an output pixel lies, and how near it is to the second.
struct Tap {
    int low, high;
    float weight;
};

__device__ __forceinline__ Tap tap_at(int at, int inputs, float scale) {
    const float centre = __fsub_rn(__fmul_rn(__fadd_rn(static_cast<float>(at), 0.5f), scale), 0.5f);
    const float source = fminf(fmaxf(centre, 0.0f), static_cast<float>(inputs - 1));
    const int low = static_cast<int>(source);
    return {low, min(low + 1, inputs - 1), __fsub_rn(source, static_cast<float>(low))};
}

__device__ __forceinline__ float blend(float first, float second, float weight) {
    return __fadd_rn(first, __fmul_rn(__fsub_rn(second, first), weight));
}

// One source row at one output column.
struct Line {
    int at;
    float value[CHANNELS];
};

__device__ __forceinline__ Line line_at(const unsigned char* __restrict__ pixels, int columns, int at,
                                        const Tap& across) {
    const unsigned char* row = pixels + static_cast<long long>(at) * columns * CHANNELS;
    Line line;
    line.at = at;
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel)
        line.value[channel] = blend(static_cast<float>(row[across.low * CHANNELS + channel]),
                                    static_cast<float>(row[across.high * CHANNELS + channel]), across.weight);
    return line;
}

// The block's part of one row of the input. `pixels` is the image's first byte.
template <typename T>
__device__ __forceinline__ void resize_normalize(const unsigned char* __restrict__ pixels, const Image& image,
                                                 const Placement& place, const Colours& colours, T* __restrict__ output,
                                                 int height, int width) {
    const int x = static_cast<int>(blockIdx.x) * COLUMNS_PER_BLOCK + static_cast<int>(threadIdx.x);
    if (x >= width) return;
    const int first = static_cast<int>(blockIdx.y) * ROWS_PER_THREAD;
    const int end = min(first + ROWS_PER_THREAD, height);
    const bool beside = x < place.left || x >= place.left + place.columns;
    const float down_scale = __fdiv_rn(static_cast<float>(image.rows), static_cast<float>(place.rows));
    const float across_scale = __fdiv_rn(static_cast<float>(image.columns), static_cast<float>(place.columns));
    const Tap across = tap_at(x - place.left, image.columns, across_scale);
    Line above = {-1, {}}, below = {-1, {}};
    for (int y = first; y < end; ++y) {
        float value[CHANNELS];
        if (beside || y < place.top || y >= place.top + place.rows) {
#pragma unroll
            for (int channel = 0; channel < CHANNELS; ++channel) value[channel] = colours.fill[channel];
        } else {
            const Tap down = tap_at(y - place.top, image.rows, down_scale);
            if (above.at != down.low)
                above = below.at == down.low ? below : line_at(pixels, image.columns, down.low, across);
            if (below.at != down.high)
                below = above.at == down.high ? above : line_at(pixels, image.columns, down.high, across);
#pragma unroll
            for (int channel = 0; channel < CHANNELS; ++channel) {
                const int mirrored = CHANNELS - 1 - channel;  // each index known when this is compiled
                const float upper = colours.reversed ? above.value[mirrored] : above.value[channel];
                const float lower = colours.reversed ? below.value[mirrored] : below.value[channel];
                const float blended = blend(upper, lower, down.weight);
                value[channel] = __fsub_rn(__fmul_rn(blended, colours.factor[channel]), colours.offset[channel]);
            }
        }
#pragma unroll
        for (int channel = 0; channel < CHANNELS; ++channel)
            store(output + (static_cast<long long>(channel) * height + y) * width + x, value[channel]);
    }
}
