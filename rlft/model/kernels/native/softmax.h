// Softmax over a row: of attention scores, and of logits for the log-probs of chosen tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

constexpr int kTogether = 4;  // rows of a softmax, and query heads of a key head, that are computed together
constexpr int64_t kTileRows = 64;  // queries times the heads that share a key, whose scores are in the cache together

// e^(y - max y) with y = x sharpness in place of scores x (Rows, stride), of which the first `count` of each row are
// given; the sums and the max y of rows. Rows are computed side by side, since a row's steps wait for each other.
template <int Rows>
inline void softmax(float* scores, int64_t stride, int64_t count, float sharpness, float* totals, float* most) {
  Floats largest[Rows], sums[Rows] = {};
  for (int row = 0; row < Rows; ++row) {
    for (int64_t i = count; i % kLanes; ++i) scores[row * stride + i] = -INFINITY;
    largest[row] = load<Floats>(scores + row * stride);
  }
  for (int64_t i = kLanes; i < count; i += kLanes)
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) largest[row] = larger(load<Floats>(scores + row * stride + i), largest[row]);
#pragma GCC unroll 4
  for (int row = 0; row < Rows; ++row) most[row] = sharpness * across(largest[row], larger);
  for (int64_t i = 0; i < count; i += kLanes)
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) {
      const Floats x = exponential(load<Floats>(scores + row * stride + i) * sharpness - most[row]);
      store(x, scores + row * stride + i);
      sums[row] += x;
    }
#pragma GCC unroll 4
  for (int row = 0; row < Rows; ++row) totals[row] = across(sums[row], plus);
}

// softmax(scores + bias) over the last dimension in place of scores (blocks, repeats, width, count); bias is (blocks,
// width, count).
template <class T>
void biased_softmax(T* scores, const T* bias, int64_t blocks, int64_t repeats, int64_t width, int64_t count) {
  const int64_t stride = whole_vectors(count), rows = blocks * repeats * width;
#pragma omp parallel
  {
    std::vector<float> scratch(kTogether * stride);
#pragma omp for schedule(static)
    for (int64_t start = 0; start < rows; start += kTogether) {
      const int64_t num = std::min<int64_t>(kTogether, rows - start);
      float totals[kTogether], largest[kTogether];
      for (int64_t row = start; row < start + num; ++row) {
        const T *from = scores + row * count, *added = bias + (row / (repeats * width) * width + row % width) * count;
        float* x = scratch.data() + (row - start) * stride;
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) store(load_wide(from + i) + load_wide(added + i), x + i);
        for (; i < count; ++i) x[i] = wide(from[i]) + wide(added[i]);
      }
      // Of a last few rows also what lies behind them.
      softmax<kTogether>(scratch.data(), stride, count, 1, totals, largest);
      for (int64_t row = start; row < start + num; ++row) {
        const float *x = scratch.data() + (row - start) * stride, share = 1.0f / totals[row - start];
        T* to = scores + row * count;
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) store_narrow(load<Floats>(x + i) * share, to + i);
        for (; i < count; ++i) to[i] = narrow<T>(x[i] * share);
      }
    }
  }
}

// Log-probs of the targets and entropies of softmax(x sharpness), nats. With `slopes`, x becomes
// softmax - onehot(target).
template <class T>
void selected_logprobs(T* x, const int64_t* targets, float* logprobs, float* entropies, int64_t rows, int64_t size,
                       float sharpness, bool slopes) {
  constexpr int64_t kBlock = 32 * kPair;  // elements summed in float32
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    T* from = x + row * size;
    Pair most = load_pair(from);
    for (int64_t i = kPair; i < size; i += kPair) {
      const Pair part = load_pair(from + i);
      most = {larger(part.first, most.first), larger(part.second, most.second)};
    }
    const float largest = sharpness * across(larger(most.first, most.second), larger);
    double total = 0, weighted = 0;
    for (int64_t start = 0; start < size; start += kBlock) {
      Floats sum = {}, weighted_sum = {};
      for (int64_t i = start; i < std::min(start + kBlock, size); i += kPair) {
        const Pair part = load_pair(from + i);
        const Floats a = part.first * sharpness - largest, b = part.second * sharpness - largest;
        const Floats c = exponential(a), d = exponential(b);
        sum += c + d;
        weighted_sum += a * c + b * d;
      }
      total += across(sum, plus);
      weighted += across(weighted_sum, plus);
    }
    const double log_total = std::log(total);
    logprobs[row] = float(double(wide(from[targets[row]]) * sharpness - largest) - log_total);
    entropies[row] = float(log_total - weighted / total);
    if (!slopes) continue;
    const float share = float(1 / total), target = wide(from[targets[row]]) * sharpness - largest;
    for (int64_t i = 0; i < size; i += kPair) {
      const Pair part = load_pair(from + i);
      store_pair(Pair{exponential(part.first * sharpness - largest) * share,
                      exponential(part.second * sharpness - largest) * share},
                 from + i);
    }
    from[targets[row]] = narrow<T>(float(std::exp(double(target)) / total - 1));
  }
}

}  // namespace
