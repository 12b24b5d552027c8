// Products with a weight that stays, y = x W^T, for processors that multiply bfloat16 in vector units.
//
// A weight lies in panels of kColumns outputs, in each of which the inputs follow one another two by two: what one step
// of a sum needs is read in one go, from the first byte of memory to the last. A panel is multiplied with all rows
// before the next one, which is fetched meanwhile: so reading the weight from memory and multiplying take place at the
// same time, and with few rows the product takes no longer than the reading.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

constexpr int kColumns = 32;
constexpr int kRows = 13;              // sums of so many rows, of two vectors each, fit in registers
constexpr int64_t kRowsInCache = 256;  // rows whose inputs stay in the cache while they are multiplied with all panels

enum Operation : int64_t { kPlain, kPlus, kTimes, kSilu };  // y; y + other; y other; y sigmoid(y)

struct Panel {
  const BFloat16 *weight, *bias, *other;
  const char* next;  // what to fetch meanwhile
  BFloat16* y;
  int64_t inputs, outputs, fetch_every;
  uint32_t present;  // columns that there are
  Operation operation;
};

inline __m512 wide_vector(__mmask16 present, const BFloat16* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present, from)), 16));
}

template <int Rows>
void multiply(const BFloat16* x, const Panel& panel, int64_t row) {
  const int64_t inputs = panel.inputs;
  __m512 sums[Rows][2];
  for (int half = 0; half < 2; ++half) {
    const __mmask16 present = panel.present >> 16 * half;
    const __m512 start = panel.bias ? wide_vector(present, panel.bias + 16 * half) : _mm512_setzero_ps();
    for (int r = 0; r < Rows; ++r) sums[r][half] = start;
  }
  const char* next = panel.next;
  for (int64_t i = 0; i < inputs;) {
    _mm_prefetch(next, _MM_HINT_T1);
    _mm_prefetch(next + 64, _MM_HINT_T1);
    next += 128;
    const int64_t stop = std::min(i + 2 * panel.fetch_every, inputs);
    for (; i < stop; i += 2) {
      const BFloat16* weight = panel.weight + i * kColumns;
      const __m512bh first = (__m512bh)_mm512_loadu_si512(weight);
      const __m512bh second = (__m512bh)_mm512_loadu_si512(weight + kColumns);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        int32_t both;
        std::memcpy(&both, x + r * inputs + i, sizeof both);
        const __m512bh pair = (__m512bh)_mm512_set1_epi32(both);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], first, pair);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], second, pair);
      }
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int half = 0; half < 2; ++half) {
      const __mmask16 present = panel.present >> 16 * half;
      const int64_t place = (row + r) * panel.outputs + 16 * half;
      __m512 sum = sums[r][half];
      if (panel.operation == kPlus) sum = _mm512_add_ps(sum, wide_vector(present, panel.other + place));
      if (panel.operation == kTimes) sum = _mm512_mul_ps(sum, wide_vector(present, panel.other + place));
      if (panel.operation == kSilu) sum = _mm512_mul_ps(sum, __m512(sigmoid(Floats(sum))));
      _mm256_mask_storeu_epi16(panel.y + place, present, (__m256i)_mm512_cvtneps_pbh(sum));
    }
}

template <int Rows = kRows>
void multiply(int64_t rows, const BFloat16* x, const Panel& panel, int64_t row) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      multiply<Rows>(x, panel, row);
    else
      multiply<Rows - 1>(rows, x, panel, row);
  }
}

void linear(const BFloat16* x, const BFloat16* panels, const BFloat16* bias, const BFloat16* other, BFloat16* y,
            int64_t rows, int64_t inputs, int64_t outputs, Operation operation) {
  const int64_t size = inputs * kColumns;
#pragma omp parallel
  for (int64_t begin = 0; begin < rows; begin += kRowsInCache) {
    const int64_t count = std::min(kRowsInCache, rows - begin), blocks = (count + kRows - 1) / kRows;
    const int64_t fetches = (inputs / 2 + blocks - 1) / blocks;
#pragma omp for schedule(static) nowait
    for (int64_t column = 0; column < outputs; column += kColumns) {
      Panel panel = {panels + column * inputs, bias ? bias + column : nullptr, other + (other ? column : 0), nullptr,
                     y + column, inputs, outputs, blocks, 0xffffffff, operation};
      if (outputs - column < kColumns) panel.present = (1u << (outputs - column)) - 1;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = begin + block * count / blocks, next_row = begin + (block + 1) * count / blocks;
        panel.next = reinterpret_cast<const char*>(panel.weight + size) + block * fetches * 128;
        multiply(next_row - row, x + row * inputs, panel, row);
      }
    }
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

// A weight (outputs, inputs) in panels.
void panels_of(const BFloat16* weight, BFloat16* panels, int64_t inputs, int64_t outputs) {
#pragma omp parallel for schedule(static)
  for (int64_t column = 0; column < outputs; column += kColumns) {
    BFloat16* to = panels + column * inputs;
    const int64_t present = std::min<int64_t>(kColumns, outputs - column);
    int64_t i = 0;
    for (; present == kColumns && i + kPair <= inputs; i += kPair)
      for (int64_t half = 0; half < kColumns; half += kLanes) {
        Words block[kLanes];  // of pairs of inputs
        for (int c = 0; c < kLanes; ++c) block[c] = load<Words>(weight + (column + half + c) * inputs + i);
        transpose(block);
        for (int pair = 0; pair < kLanes; ++pair)
          std::memcpy(to + (i + 2 * pair) * kColumns + 2 * half, &block[pair], sizeof(Words));
      }
    for (; i < inputs; i += 2)
      for (int64_t c = 0; c < kColumns; ++c) {
        const BFloat16* from = weight + (column + c) * inputs + i;
        to[i * kColumns + 2 * c] = c < present ? from[0] : BFloat16{};
        to[i * kColumns + 2 * c + 1] = c < present ? from[1] : BFloat16{};
      }
  }
}

// A weight (inputs, outputs), the other way round, in panels.
void panels_of_transposed(const BFloat16* weight, BFloat16* panels, int64_t inputs, int64_t outputs) {
#pragma omp parallel for schedule(static)
  for (int64_t column = 0; column < outputs; column += kColumns)
    for (int64_t i = 0; i < inputs; i += 2) {
      const BFloat16 *first = weight + i * outputs + column, *second = first + outputs;
      BFloat16* to = panels + column * inputs + i * kColumns;
      if (column + kColumns <= outputs) {
        for (int64_t c = 0; c < kColumns; c += kLanes) {
          const Words low = __builtin_convertvector(load<HalfWords>(first + c), Words);
          const Words both = low | __builtin_convertvector(load<HalfWords>(second + c), Words) << 16;
          std::memcpy(to + 2 * c, &both, sizeof both);
        }
        continue;
      }
      for (int64_t c = 0; c < kColumns; ++c) {
        to[2 * c] = column + c < outputs ? first[c] : BFloat16{};
        to[2 * c + 1] = column + c < outputs ? second[c] : BFloat16{};
      }
    }
}

}  // namespace
