// What clang compiles OpenMP to, by GCC's runtime.
//
// Clang calls functions of LLVM's runtime, which would be a second pool of threads beside torch's. The few that the
// kernels need are defined here by those of libgomp, which torch brings.
#pragma once

#ifdef __clang__

#include <algorithm>
#include <cstdarg>
#include <cstdint>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace {

constexpr int kMostVariables = 16;
thread_local int serial_regions = 0;  // around this place, which one thread runs although it may be one of several

// A region's code, and the addresses of variables that it shares. A function leaves alone what it is given beyond its
// parameters.
struct Region {
  void (*body)(const int32_t*, const int32_t*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*,
               void*, void*, void*, void*, void*, void*);
  void* shared[kMostVariables];
};

void run_region(void* data) {
  const Region& region = *static_cast<const Region*>(data);
  void* const* v = region.shared;
  const int32_t thread = 0;  // only handed on, to the functions below
  region.body(&thread, &thread, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13],
              v[14], v[15]);
}

// This thread's part of a loop from lower to upper, inclusive.
template <class T>
void share_loop(int32_t* is_last, T* lower, T* upper) {
  const T threads = serial_regions ? 1 : omp_get_num_threads(), thread = serial_regions ? 0 : omp_get_thread_num();
  const T count = *upper - *lower + 1, each = count / threads, rest = count % threads;
  *lower += thread * each + std::min(thread, rest);
  *upper = *lower + each + (thread < rest) - 1;
  *is_last = thread == threads - 1;
}

}  // namespace

#pragma GCC visibility push(hidden)
extern "C" {
int32_t __kmpc_global_thread_num(void*) { return 0; }
void __kmpc_serialized_parallel(void*, int32_t) { ++serial_regions; }
void __kmpc_end_serialized_parallel(void*, int32_t) { --serial_regions; }
void __kmpc_barrier(void*, int32_t) {
  if (!serial_regions) GOMP_barrier();
}
void __kmpc_for_static_init_8(void*, int32_t, int32_t, int32_t* is_last, int64_t* lower, int64_t* upper, int64_t*,
                              int64_t, int64_t) {
  share_loop(is_last, lower, upper);
}
void __kmpc_for_static_init_8u(void*, int32_t, int32_t, int32_t* is_last, uint64_t* lower, uint64_t* upper, int64_t*,
                               int64_t, int64_t) {
  share_loop(is_last, lower, upper);
}
void __kmpc_for_static_fini(void*, int32_t) {}
void __kmpc_fork_call(void*, int32_t count, void (*body)(int32_t*, int32_t*, ...), ...) {
  if (count > kMostVariables) __builtin_trap();
  Region region = {};
  region.body = reinterpret_cast<decltype(region.body)>(body);
  va_list given;
  va_start(given, body);
  for (int i = 0; i < count; ++i) region.shared[i] = va_arg(given, void*);
  va_end(given);
  GOMP_parallel(run_region, &region, 0, 0);
}
}
#pragma GCC visibility pop

#endif
