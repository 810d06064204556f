// EXPECT: forward.hpp:3:.*the same on host and device
/* __CUDA_ARCH__ in a comment is fine */
#if defined(__CUDA_ARCH__)
#endif
