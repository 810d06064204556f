// Device code that calls the host: nvcc's front end passes it, compiling it quickly does not (cmake/nvcc_checks.cmake).
int on_the_host(int value);

template <class Value>
__global__ void calls_the_host(Value* value) {
  *value = on_the_host(*value);
#if defined(MOE_BALANCE_HAS_NO_MEMBER)
  *value = value->member;
#endif
}

template <class Value>
void launch_on(Value* value) {
#if defined(MOE_BALANCE_HOST_HAS_NO_MEMBER)
  *value = value->member;
#endif
  calls_the_host<<<1, 1>>>(value);
}

void launch(int* value);
void launch(int* value) {
  launch_on(value);
}
