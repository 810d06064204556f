// A kernel that indexes a local array at run time, so that it lies on the stack: resources.sh must find it.
__global__ void uses_the_stack(float* data, const int* index) {
  float local[64] = {};
  for (int i = 0; i < 64; ++i) local[index[i] & 63] += data[i];
  for (int i = 0; i < 64; ++i) data[i] = local[i];
}
