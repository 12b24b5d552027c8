// Products with a weight that stays, y = x W^T.
//
// A weight lies in panels of kColumns outputs, in each of which the inputs follow one another, as many as four bytes
// hold at a time: what one step of a sum needs is read in one go, from the first byte of memory to the last. A panel is
// multiplied with all rows before the next one, which is fetched meanwhile: so reading the weight from memory and
// multiplying take place at the same time, and with few rows the product takes no longer than the reading.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int64_t kRowsInCache = 256;  // rows whose inputs stay in the cache while they are multiplied with all panels

enum Operation : int64_t { kPlain, kPlus, kTimes, kSilu };  // y; y + other; y other; y sigmoid(y)

// How numbers of a type are multiplied. Sums of kRows rows with a panel fit in registers.
template <class T>
struct Product;

template <>
struct Product<float> {
  static constexpr int kColumns = 16, kRows = kLanes == 16 ? 14 : 6;
  using Weights = Floats;
  static Weights weights(const float* from) { return load<Floats>(from); }
  static void add(Floats& sum, Weights weights, const float* x) { sum = fused(weights, *x, sum); }
  // kLanes columns, of which `present` are there.
  static Floats columns(const float* from, int64_t present) {
    if (present >= kLanes) return load<Floats>(from);
    Floats x = {};
    if (present > 0) std::memcpy(&x, from, present * sizeof(float));
    return x;
  }
  static void store_columns(Floats x, float* to, int64_t present) {
    if (present >= kLanes)
      store(x, to);
    else if (present > 0)
      std::memcpy(to, &x, present * sizeof(float));
  }
};

#ifdef __AVX512BF16__
template <>
struct Product<BFloat16> {
  static constexpr int kColumns = 32, kRows = 13;
  using Weights = __m512bh;  // of pairs of inputs
  static Weights weights(const BFloat16* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static void add(Floats& sum, Weights weights, const BFloat16* x) {
    sum = Floats(_mm512_dpbf16_ps(__m512(sum), weights, (__m512bh)_mm512_set1_epi32(load<int32_t>(x))));
  }
  static __mmask16 mask(int64_t present) { return present >= kLanes ? 0xffff : present > 0 ? (1 << present) - 1 : 0; }
  static Floats columns(const BFloat16* from, int64_t present) {
    return Floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(present), from)), 16));
  }
  static void store_columns(Floats x, BFloat16* to, int64_t present) {
    _mm256_mask_storeu_epi16(to, mask(present), (__m256i)_mm512_cvtneps_pbh(__m512(x)));
  }
};
#else
template <>
struct Product<BFloat16> {  // for attention only: other products are torch's
  static constexpr int kColumns = 2 * kLanes, kRows = 4;
  using Weights = Pair;  // the first and the second input of each pair
  static Weights weights(const BFloat16* from) { return load_pair(from); }
  static void add(Floats& sum, Weights weights, const BFloat16* x) {
    sum = fused(weights.second, wide(x[1]), fused(weights.first, wide(x[0]), sum));
  }
};
#endif

template <class T>
constexpr int kInputs = 4 / sizeof(T);  // of a step
template <class T>
constexpr int kVectors = Product<T>::kColumns / kLanes;  // of a panel's columns

// Add to the sums what rows x (Rows, stride) times a panel give for its inputs from `begin` to `end`.
template <int Rows, class T>
[[gnu::always_inline]] inline void add_inputs(Floats (&sums)[Rows][kVectors<T>], const T* x, int64_t stride,
                                              const T* panel, int64_t begin, int64_t end) {
  using P = Product<T>;
  for (int64_t i = begin; i < end; i += kInputs<T>) {
    const T* from = panel + i * P::kColumns;
    typename P::Weights weights[kVectors<T>];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors<T>; ++v) weights[v] = P::weights(from + v * kLanes * kInputs<T>);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors<T>; ++v) P::add(sums[r][v], weights[v], x + r * stride + i);
  }
}

// What is fetched from memory meanwhile: a step's bytes of a panel every so many steps; nothing from null.
struct Fetch {
  const char* next;
  int64_t every;
};

template <int Rows, class T>
[[gnu::always_inline]] inline void add_inputs(Floats (&sums)[Rows][kVectors<T>], const T* x, int64_t stride,
                                              const T* panel, int64_t inputs, Fetch fetch) {
  constexpr int kLine = 64, kBytes = Product<T>::kColumns * 4;
  if (!fetch.next) return add_inputs(sums, x, stride, panel, 0, inputs);
  for (int64_t i = 0; i < inputs; fetch.next += kBytes) {
    for (int line = 0; line < kBytes; line += kLine) __builtin_prefetch(fetch.next + line, 0, 2);
    const int64_t stop = std::min(i + kInputs<T> * fetch.every, inputs);
    add_inputs(sums, x, stride, panel, i, stop);
    i = stop;
  }
}

template <class T>
struct Panel {
  const T *weight, *bias, *other;
  Fetch fetch;
  T* y;
  int64_t inputs, outputs;
  int64_t present;  // columns that there are
  Operation operation;
};

template <int Rows, class T>
void multiply(const T* x, const Panel<T>& panel, int64_t row) {
  using P = Product<T>;
  Floats sums[Rows][kVectors<T>];
  for (int v = 0; v < kVectors<T>; ++v) {
    const Floats start = panel.bias ? P::columns(panel.bias + v * kLanes, panel.present - v * kLanes) : Floats{};
    for (int r = 0; r < Rows; ++r) sums[r][v] = start;
  }
  add_inputs(sums, x, panel.inputs, panel.weight, panel.inputs, panel.fetch);
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors<T>; ++v) {
      const int64_t place = (row + r) * panel.outputs + v * kLanes, present = panel.present - v * kLanes;
      Floats sum = sums[r][v];
      if (panel.operation == kPlus) sum += P::columns(panel.other + place, present);
      if (panel.operation == kTimes) sum *= P::columns(panel.other + place, present);
      if (panel.operation == kSilu) sum *= sigmoid(sum);
      P::store_columns(sum, panel.y + place, present);
    }
}

template <class T, int Rows = Product<T>::kRows>
void multiply(int64_t rows, const T* x, const Panel<T>& panel, int64_t row) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      multiply<Rows>(x, panel, row);
    else
      multiply<T, Rows - 1>(rows, x, panel, row);
  }
}

template <class T>
void linear(const T* x, const T* panels, const T* bias, const T* other, T* y, int64_t rows, int64_t inputs,
            int64_t outputs, Operation operation) {
  constexpr int kColumns = Product<T>::kColumns, kRows = Product<T>::kRows;
  const int64_t size = inputs * kColumns;
#pragma omp parallel
  for (int64_t begin = 0; begin < rows; begin += kRowsInCache) {
    const int64_t count = std::min(kRowsInCache, rows - begin), blocks = (count + kRows - 1) / kRows;
    const int64_t fetches = (inputs / kInputs<T> + blocks - 1) / blocks;
#pragma omp for schedule(static) nowait
    for (int64_t column = 0; column < outputs; column += kColumns) {
      Panel<T> panel = {panels + column * inputs, bias ? bias + column : nullptr, other + (other ? column : 0),
                        {nullptr, blocks}, y + column, inputs, outputs, outputs - column, operation};
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = begin + block * count / blocks, next_row = begin + (block + 1) * count / blocks;
        panel.fetch.next = reinterpret_cast<const char*>(panel.weight + size) + block * fetches * kColumns * 4;
        multiply(next_row - row, x + row * inputs, panel, row);
      }
    }
  }
}

// y (rows, y_stride) becomes, or grows by, x (rows, x_stride) times a panel.
template <int Rows, class T>
void add_product(const T* x, int64_t x_stride, const T* panel, int64_t inputs, float* y, int64_t y_stride,
                 bool is_first, Fetch fetch) {
  Floats sums[Rows][kVectors<T>];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors<T>; ++v)
      sums[r][v] = is_first ? Floats{} : load<Floats>(y + r * y_stride + v * kLanes);
  add_inputs(sums, x, x_stride, panel, inputs, fetch);
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors<T>; ++v) store(sums[r][v], y + r * y_stride + v * kLanes);
}

template <class T, int Rows = Product<T>::kRows>
void add_product(int64_t rows, const T* x, int64_t x_stride, const T* panel, int64_t inputs, float* y, int64_t y_stride,
                 bool is_first, Fetch fetch) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      add_product<Rows>(x, x_stride, panel, inputs, y, y_stride, is_first, fetch);
    else
      add_product<T, Rows - 1>(rows, x, x_stride, panel, inputs, y, y_stride, is_first, fetch);
  }
}

// next: what is multiplied after this panel, and lies elsewhere in memory; or null.
template <class T>
void add_products(int64_t rows, const T* x, int64_t x_stride, const T* panel, int64_t inputs, float* y,
                  int64_t y_stride, bool is_first, const T* next = nullptr) {
  constexpr int64_t kRows = Product<T>::kRows;
  const int64_t blocks = (rows + kRows - 1) / kRows;
  const int64_t fetches = (inputs / kInputs<T> + blocks - 1) / blocks * Product<T>::kColumns * kInputs<T>;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t row = block * rows / blocks, end = (block + 1) * rows / blocks;
    const Fetch fetch = {reinterpret_cast<const char*>(next ? next + block * fetches : nullptr), blocks};
    add_product<T>(end - row, x + row * x_stride, x_stride, panel, inputs, y + row * y_stride, y_stride, is_first,
                   fetch);
  }
}

// x[i][j] becomes x[j][i]: of each pair of vectors, and of ever larger blocks of them, the halves that lie across are
// exchanged.
inline void transpose(Words* x) {
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    const Ints first = (kPlaces & step) != 0 ? kPlaces - step + kLanes : kPlaces, second = first + step;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & step) continue;
      const Words above = x[i], below = x[i + step];
      x[i] = shuffled(above, below, first);
      x[i + step] = shuffled(above, below, second);
    }
  }
}

// One panel of weights (present, inputs) that lie `stride` apart; columns beyond them become 0.
template <class T>
void panel_of(const T* weight, int64_t stride, T* to, int64_t inputs, int64_t present) {
  constexpr int kColumns = Product<T>::kColumns, kStep = kLanes * kInputs<T>;
  int64_t i = 0;
  for (; i + kStep <= inputs; i += kStep)
    for (int64_t first = 0; first < kColumns; first += kLanes) {
      Words block[kLanes];  // of what a step takes
      for (int c = 0; c < kLanes; ++c)
        block[c] = first + c < present ? load<Words>(weight + (first + c) * stride + i) : Words{};
      transpose(block);
      for (int step = 0; step < kLanes; ++step)
        std::memcpy(to + (i + step * kInputs<T>) * kColumns + first * kInputs<T>, &block[step], sizeof(Words));
    }
  for (; i < inputs; i += kInputs<T>)
    for (int64_t c = 0; c < kColumns; ++c)
      for (int64_t input = 0; input < kInputs<T>; ++input)
        to[i * kColumns + c * kInputs<T> + input] = c < present ? weight[c * stride + i + input] : T{};
}

// A weight (outputs, inputs) in panels.
template <class T>
void panels_of(const T* weight, T* panels, int64_t inputs, int64_t outputs) {
  constexpr int kColumns = Product<T>::kColumns;
#pragma omp parallel for schedule(static)
  for (int64_t column = 0; column < outputs; column += kColumns)
    panel_of(weight + column * inputs, inputs, panels + column * inputs, inputs,
             std::min<int64_t>(kColumns, outputs - column));
}

// What a step takes of kLanes outputs, from the inputs that it takes, each (outputs).
inline Words of_step(const float* first, const float*) { return load<Words>(first); }
inline Words of_step(const BFloat16* first, const BFloat16* second) {
  const Words low = __builtin_convertvector(load<HalfWords>(first), Words);
  return low | __builtin_convertvector(load<HalfWords>(second), Words) << 16;
}

// One panel of weights (given, present) whose inputs lie `stride` apart; inputs and columns beyond them become 0.
template <class T>
void panel_of_transposed(const T* weight, int64_t stride, T* to, int64_t inputs, int64_t given, int64_t present) {
  constexpr int kColumns = Product<T>::kColumns;
  const T none[kColumns] = {};
  for (int64_t i = 0; i < inputs; i += kInputs<T>, to += kInputs<T> * kColumns) {
    const T *first = i < given ? weight + i * stride : none, *second = i + 1 < given ? weight + (i + 1) * stride : none;
    if (present >= kColumns) {
      for (int64_t c = 0; c < kColumns; c += kLanes) {
        const Words words = of_step(first + c, second + c);
        std::memcpy(to + c * kInputs<T>, &words, sizeof words);
      }
      continue;
    }
    for (int64_t c = 0; c < kColumns; ++c)
      for (int64_t input = 0; input < kInputs<T>; ++input)
        to[c * kInputs<T> + input] = c < present ? (input ? second : first)[c] : T{};
  }
}

// Tokens (count, size) that lie `stride` apart, in panels: with tokens as columns.
template <class T>
void panels_of_tokens(const T* tokens, int64_t stride, int64_t count, int64_t size, T* to) {
  constexpr int64_t kColumns = Product<T>::kColumns;
  for (int64_t first = 0; first < count; first += kColumns)
    panel_of(tokens + first * stride, stride, to + first * size, size, std::min(kColumns, count - first));
}

// The same with their elements as columns. A panel has room for `room` tokens; up to as many as are whole panels of
// tokens, those that are not there become 0.
template <class T>
void panels_of_elements(const T* tokens, int64_t stride, int64_t count, int64_t size, T* to, int64_t room) {
  constexpr int64_t kColumns = Product<T>::kColumns;
  for (int64_t column = 0; column < size; column += kColumns)
    panel_of_transposed(tokens + column, stride, to + column * room, rounded_up(count, kColumns), count, kColumns);
}

// A weight (inputs, outputs), the other way round, in panels.
template <class T>
void panels_of_transposed(const T* weight, T* panels, int64_t inputs, int64_t outputs) {
  constexpr int kColumns = Product<T>::kColumns;
#pragma omp parallel for schedule(static)
  for (int64_t column = 0; column < outputs; column += kColumns)
    panel_of_transposed(weight + column, outputs, panels + column * inputs, inputs, inputs, outputs - column);
}

}  // namespace
