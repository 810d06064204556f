// The program's own pthread_create, before the C library's, to count. For one file of a program.
#pragma once

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>

namespace testing {

inline std::atomic<int> threads_started{0};

}  // namespace testing

extern "C" int pthread_create(pthread_t* id, const pthread_attr_t* attributes, void* (*function)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  ++testing::threads_started;
  return create(id, attributes, function, argument);
}
