// The engine of the executor's tests: small enough to say in NumPy what it computes, and real work on a stream.
//
// `columns`: an image of planes x height x width as a sequence of steps, each the weighted sums of 8 columns of pixels.
// In two kernels with the sums between them in scratch memory, as an engine keeps activations there.
#include <cuda_fp16.h>

constexpr int COLUMNS = 8;

__device__ __forceinline__ double as_double(float value) { return value; }
__device__ __forceinline__ double as_double(__half value) { return __half2float(value); }
__device__ __forceinline__ void put(float* place, float value) { *place = value; }
__device__ __forceinline__ void put(__half* place, float value) { *place = __float2half_rn(value); }

template <typename T>
__device__ __forceinline__ void columns(const T* input, const float* weights, double* sums, int steps, int lines,
                                        int classes, int count) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const int kind = at % classes, step = at / classes % steps, item = at / classes / steps;
    const T* pixels = input + static_cast<long long>(item) * lines * steps * COLUMNS + step * COLUMNS;
    double sum = 0;
    for (int line = 0; line < lines; ++line)
        for (int column = 0; column < COLUMNS; ++column)
            sum += as_double(pixels[line * steps * COLUMNS + column]) * weights[(line * COLUMNS + column) * classes + kind];
    sums[at] = sum;
}

template <typename T>
__device__ __forceinline__ void biased(const double* sums, const float* bias, T* output, int classes, int count) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) put(output + at, static_cast<float>(sums[at] + bias[at % classes]));
}

extern "C" __global__ void standin_columns_float32(const float* input, const float* weights, double* sums, int steps,
                                                   int lines, int classes, int count) {
    columns(input, weights, sums, steps, lines, classes, count);
}

extern "C" __global__ void standin_columns_float16(const __half* input, const float* weights, double* sums, int steps,
                                                   int lines, int classes, int count) {
    columns(input, weights, sums, steps, lines, classes, count);
}

extern "C" __global__ void standin_biased_float32(const double* sums, const float* bias, float* output, int classes,
                                                  int count) {
    biased(sums, bias, output, classes, count);
}

extern "C" __global__ void standin_biased_float16(const double* sums, const float* bias, __half* output, int classes,
                                                  int count) {
    biased(sums, bias, output, classes, count);
}

// left: items x rows x inner, right: items x inner x columns, product: items x rows x columns.
extern "C" __global__ void standin_product_float32(const float* left, const float* right, float* product, int rows,
                                                   int inner, int columns, int count) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const int column = at % columns, row = at / columns % rows, item = at / columns / rows;
    double sum = 0;
    for (int i = 0; i < inner; ++i)
        sum += static_cast<double>(left[(item * rows + row) * inner + i]) * right[(item * inner + i) * columns + column];
    product[at] = static_cast<float>(sum);
}
