// An engine that does nothing but take its time: each value is multiplied `rounds` times with -1, an even number, so
// that the answer can be checked. The factor is an argument, since a compiler that knew it would leave the loop out.

extern "C" __global__ void busy(const float* input, float* output, int values, int rounds, float factor) {
  for (int place = blockIdx.x * blockDim.x + threadIdx.x; place < values; place += gridDim.x * blockDim.x) {
    float value = input[place];
    for (int round = 0; round < rounds; ++round) {
      value = value * factor;
    }
    output[place] = value;
  }
}

// A kernel that touches memory that is not its own: the context is lost for good, as after a suspend.
extern "C" __global__ void stray(float* nowhere) {
  nowhere[threadIdx.x] = 0.0f;
}
