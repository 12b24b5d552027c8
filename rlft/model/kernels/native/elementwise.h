// Norms, rotary positions and gated products, row by row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

// Norms

template <class T>
inline void scale_row(const T* x, const T* weight, T* y, float scale, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) y[i] = narrow<T>(wide(narrow<T>(wide(x[i]) * scale)) * wide(weight[i]));
}

template <class T>
void rms_norm(const T* x, const T* weight, T* y, float* scale, int64_t rows, int64_t width, float epsilon) {
#pragma omp parallel for schedule(static) if (rows * width > kSmall)
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = x + row * width;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += wide(from[i]) * wide(from[i]);
    const float factor = 1.0f / std::sqrt(squares / width + epsilon);
    if (scale) scale[row] = factor;
    scale_row(from, weight, y + row * width, factor, width);
  }
}

template <class T>
void normed(const T* x, const T* weight, const float* scale, T* y, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kSmall)
  for (int64_t row = 0; row < rows; ++row) scale_row(x + row * width, weight, y + row * width, scale[row], width);
}

template <class T>
void rms_norm_backward(const T* grad, const T* x, const T* weight, const float* scale, const T* residual, T* out,
                       int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kSmall)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t start = row * width;
    const float factor = scale[row];
    float product = 0;
#pragma omp simd reduction(+ : product)
    for (int64_t i = 0; i < width; ++i) product += wide(grad[start + i]) * wide(weight[i]) * wide(x[start + i]);
    const float mean = product * factor * factor / width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const float along = wide(grad[start + i]) * wide(weight[i]) - wide(x[start + i]) * mean;
      out[start + i] = narrow<T>(factor * along + (residual ? wide(residual[start + i]) : 0.0f));
    }
  }
}

// Rotary positions

template <class T>
void rotate(const T* x, T* y, const T* cosine, const T* signed_sin, int64_t tokens, int64_t heads, int64_t rotated,
            int64_t size, bool backwards) {
  const int64_t half = size / 2;
#pragma omp parallel for schedule(static) if (tokens * rotated * size > kSmall)
  for (int64_t token = 0; token < tokens; ++token) {
    const T* c = cosine + token * size;
    const T* first = signed_sin + token * size + (backwards ? half : 0);
    const T* second = signed_sin + token * size + (backwards ? 0 : half);
    for (int64_t head = 0; head < rotated; ++head) {
      const T* from = x + (token * heads + head) * size;
      T* to = y + (token * heads + head) * size;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        const float left = wide(from[i]), right = wide(from[i + half]);
        to[i] = narrow<T>(left * wide(c[i]) + right * wide(first[i]));
        to[i + half] = narrow<T>(right * wide(c[i + half]) + left * wide(second[i]));
      }
    }
    if (x != y) {
      const int64_t start = (token * heads + rotated) * size;
      std::copy(x + start, x + (token + 1) * heads * size, y + start);
    }
  }
}

// Gated products: inner = (gate, up), row by row

template <class T>
void gated_silu(const T* inner, T* y, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kSmall)
  for (int64_t row = 0; row < rows; ++row) {
    const T* gate = inner + 2 * row * width;
    const T* up = gate + width;
    T* to = y + row * width;
    for (int64_t i = 0; i < width; i += kPair) {
      const Pair g = load_pair(gate + i), u = load_pair(up + i);
      store_pair(Pair{g.first * sigmoid(g.first) * u.first, g.second * sigmoid(g.second) * u.second}, to + i);
    }
  }
}

template <class T>
void gated_silu_backward(const T* grad, const T* inner, T* out, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kSmall)
  for (int64_t row = 0; row < rows; ++row) {
    const T* gate = inner + 2 * row * width;
    const T* up = gate + width;
    const T* from = grad + row * width;
    T* to = out + 2 * row * width;
    for (int64_t i = 0; i < width; i += kPair) {
      const Pair g = load_pair(gate + i), u = load_pair(up + i), d = load_pair(from + i);
      const Floats s = sigmoid(g.first), t = sigmoid(g.second);
      store_pair(Pair{d.first * g.first * s, d.second * g.second * t}, to + i + width);
      store_pair(Pair{d.first * u.first * s * (1.0f + g.first * (1.0f - s)),
                  d.second * u.second * t * (1.0f + g.second * (1.0f - t))},
                 to + i);
    }
  }
}

}  // namespace
