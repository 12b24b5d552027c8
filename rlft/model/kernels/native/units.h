// Work in units that threads take one after the other, and their memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace {

// Memory that is not touched before it is used.
template <class T>
std::unique_ptr<T[]> unset(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// Threads take units one after the other, since some take longer; no result depends on who took what. `prepare` makes
// what a thread needs, a function of a unit.
template <class Prepare>
void for_each_unit(int64_t count, Prepare prepare) {
  std::atomic<int64_t> next{0};
#pragma omp parallel
  {
    const auto work = prepare();
    for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(unit);
  }
}

}  // namespace
