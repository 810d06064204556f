// A kernel with default visibility: hidden_kernels.sh must find it.
__global__ void is_exported(float* data) { data[0] = 1.0f; }
