// A benchmark of a router of your own is one line in a file that is linked with benchmark_main.cpp:
//
//   const bool softplus = microbenchmark::add("softplus_top4", mb::Router{Softplus{}, mb::TopK<4>{}});
//
// In a .cpp it runs on the CPU, in a .cu on the GPU. user_policy.cpp is such a file.
#pragma once

#if defined(__CUDACC__)
#include "gpu_timing.cuh"
#else
#include "cpu_timing.hpp"
#endif

#include <string>
#include <vector>

namespace microbenchmark {

/// Registers route alone: forward without what balancing needs.
template <class Router>
bool add_route(const std::string& name, const Router& router, const std::vector<int>& typical = {64, 256}) {
#if defined(__CUDACC__)
  add_on_gpu(name, router, Work::route, typical);
#else
  add_on_host(name, router, Work::route, typical);
#endif
  return true;
}

/// Registers forward, backward and, for a router with a bias, update, for every shape in shapes.hpp that the router accepts. Without a
/// filter only those with a number of experts in `typical` run. Reports bytes/s, tokens/s and the share of a copy's bandwidth that was
/// measured in the same run (copy_percent). Returns true, so that a global variable's initialiser can call it.
template <class Router>
bool add(const std::string& name, const Router& router, const std::vector<int>& typical = {64, 256}) {
  for (const Work work : {Work::forward, Work::backward, Work::update}) {
    if (work == Work::update && Router::Traits::biases == 0) continue;
#if defined(__CUDACC__)
    add_on_gpu(name, router, work, typical);
#else
    add_on_host(name, router, work, typical);
#endif
  }
  return true;
}

}  // namespace microbenchmark
