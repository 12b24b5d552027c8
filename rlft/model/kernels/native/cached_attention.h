// Attention of one new token per row over its prompt's keys and its own, which lie in a cache (kv_cache.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "softmax.h"
#include "vectors.h"

namespace {

// The sum of each of kLanes vectors: neighbours are added up, from two vectors at a time, until one is left.
template <int Count = kLanes>
inline Floats sums_of(Floats* x) {
  if constexpr (Count > 1) {
    const Ints kEven = kPlaces + kPlaces;
#pragma GCC unroll 8
    for (int i = 0; i < Count / 2; ++i)
      x[i] = shuffled(x[2 * i], x[2 * i + 1], kEven) + shuffled(x[2 * i], x[2 * i + 1], kEven + 1);
    return sums_of<Count / 2>(x);
  }
  return x[0];
}

constexpr int64_t kLine = 64;  // bytes that come from memory together

template <class T>
struct Following {  // keys or values that are read next
  const T* from;
  int64_t count;
};

// Prefetch `width` elements of a key or value that is read next: one has too few for the processor to see where they go
// on.
template <class T>
inline void fetch(Following<T> next, int64_t index, int64_t width, int64_t size) {
  if (index >= next.count) return;
  const char* first = reinterpret_cast<const char*>(next.from + index * size);
  for (int64_t i = 0; i < width * int64_t(sizeof(T)); i += kLine) __builtin_prefetch(first + i, 0, 2);
}

// q (S, size) times keys (count, size), to scores (S, stride). The elements of q lie as load_pair gives those of keys.
// `next`: keys that are prefetched meanwhile.
template <class T, int S, int kSize>
void dot_keys(const float* q, const T* keys, Following<T> next, float* scores, int64_t count, int64_t stride,
              int64_t given_size) {
  const int64_t size = kSize ? kSize : given_size;
  Floats sums[S][kLanes] = {};
  for (int64_t start = 0; start < count; start += kLanes) {
    const int64_t num = std::min<int64_t>(kLanes, count - start);
    for (int64_t key = 0; key < num; ++key) {
      fetch(next, start + key, size, size);
      Floats sum[S] = {};
#pragma GCC unroll 4
      for (int64_t i = 0; i < size; i += kPair) {
        const Pair k = load_pair(keys + (start + key) * size + i);
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) {
          sum[s] += load<Floats>(q + s * size + i) * k.first;
          sum[s] += load<Floats>(q + s * size + i + kLanes) * k.second;
        }
      }
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sums[s][key] = sum[s];
    }
    for (int s = 0; s < S; ++s) {
      const Floats result = sums_of(sums[s]);
      std::memcpy(scores + s * stride + start, &result, sizeof(float) * num);
    }
  }
}

// output (S, size), laid out as q, plus weights (S, stride) times values (count, size), for kPair * Pairs columns.
template <class T, int S, int Pairs>
void add_columns(const float* weights, const T* values, Following<T> next, float* output, int64_t count, int64_t stride,
                 int64_t size) {
  Floats sums[S][2 * Pairs];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 4
    for (int i = 0; i < 2 * Pairs; ++i) sums[s][i] = load<Floats>(output + s * size + i * kLanes);
  for (int64_t key = 0; key < count; ++key) {
    fetch(next, key, Pairs * kPair, size);
#pragma GCC unroll 2
    for (int pair = 0; pair < Pairs; ++pair) {
      const Pair v = load_pair(values + key * size + pair * kPair);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        sums[s][2 * pair] += weights[s * stride + key] * v.first;
        sums[s][2 * pair + 1] += weights[s * stride + key] * v.second;
      }
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 4
    for (int i = 0; i < 2 * Pairs; ++i) store(sums[s][i], output + s * size + i * kLanes);
}

template <class T, int S>
void add_values(const float* weights, const T* values, Following<T> next, float* output, int64_t count, int64_t stride,
                int64_t size) {
  int64_t start = 0;
  for (; start + 2 * kPair <= size; start += 2 * kPair, next.from += 2 * kPair)
    add_columns<T, S, 2>(weights, values + start, next, output + start, count, stride, size);
  if (start < size) add_columns<T, S, 1>(weights, values + start, next, output + start, count, stride, size);
}

template <class T>
struct Stored {  // keys and values of one sequence and head, count tokens of each
  const T *keys, *values;
  int64_t count;
  Following<T> next_keys, next_values;
};

template <class T, int S, int kSize>
void attention_of_heads(const T* query, const Stored<T>* stored, T* out, float scale, int64_t size,
                        std::vector<float>& scratch) {
  const int64_t count = stored[0].count + stored[1].count, stride = whole_vectors(count);
  scratch.resize(S * (2 * size + stride));
  float *q = scratch.data(), *sums = q + S * size, *scores = sums + S * size;
  for (int64_t i = 0; i < S * size; i += kPair) {
    const Pair part = load_pair(query + i);
    store_pair(Pair{part.first * scale, part.second * scale}, q + i);
    store_pair(Pair{}, sums + i);
  }
  dot_keys<T, S, kSize>(q, stored[0].keys, stored[0].next_keys, scores, stored[0].count, stride, size);
  dot_keys<T, S, kSize>(q, stored[1].keys, stored[1].next_keys, scores + stored[0].count, stored[1].count, stride,
                        size);
  float totals[S], largest[S];
  softmax<S>(scores, stride, count, 1, totals, largest);
  add_values<T, S>(scores, stored[0].values, stored[0].next_values, sums, stored[0].count, stride, size);
  add_values<T, S>(scores + stored[0].count, stored[1].values, stored[1].next_values, sums, stored[1].count, stride,
                   size);
  for (int s = 0; s < S; ++s)
    for (int64_t i = s * size; i < (s + 1) * size; i += kPair)
      store_pair(Pair{load<Floats>(sums + i) / totals[s], load<Floats>(sums + i + kLanes) / totals[s]}, out + i);
}

template <class T, int S>
void attention_of_heads(const T* query, const Stored<T>* stored, T* out, float scale, int64_t size,
                        std::vector<float>& scratch) {
  if (size == 64)
    attention_of_heads<T, S, 64>(query, stored, out, scale, size, scratch);
  else if (size == 128)
    attention_of_heads<T, S, 128>(query, stored, out, scale, size, scratch);
  else
    attention_of_heads<T, S, 0>(query, stored, out, scale, size, scratch);
}

struct CacheShape {
  int64_t rows, row_stride, heads, key_heads, size, prompt_capacity, prompt_columns, row_capacity, row_columns;
};

// fresh: the rows' new keys and values, each (key_heads, size), which are stored first; null where they have been.
template <class T>
void cached_attention(const T* query, const T* fresh, const T* prompts, T* own, const int64_t* prompt_of_row,
            const int64_t* prompt_length, const int64_t* age, T* out, const CacheShape& n, float scale) {
  const int64_t shared = n.heads / n.key_heads;
  const int64_t prompt_values = n.prompt_capacity * n.key_heads * n.prompt_columns * n.size;
  const int64_t own_values = n.row_capacity * n.key_heads * n.row_columns * n.size;
#pragma omp parallel
  {
    std::vector<float> scratch;
#pragma omp for schedule(static) collapse(2)
    for (int64_t row = 0; row < n.rows; ++row)
      for (int64_t key_head = 0; key_head < n.key_heads; ++key_head) {
        const int64_t prompt = prompt_of_row[row];
        const T* prompt_keys = prompts + (prompt * n.key_heads + key_head) * n.prompt_columns * n.size;
        T* own_keys = own + (row * n.key_heads + key_head) * n.row_columns * n.size;
        if (fresh) {
          const T* key = fresh + row * n.row_stride + key_head * n.size;
          const T* value = key + n.key_heads * n.size;
          std::copy(key, key + n.size, own_keys + age[row] * n.size);
          std::copy(value, value + n.size, own_keys + own_values + age[row] * n.size);
        }
        const T* following = own_keys + n.row_columns * n.size;  // of the next head, or of the next row's first one
        const int64_t count = age[row] + 1;
        const Following<T> own_next[2] = {{own_keys, count}, {own_keys + own_values, count}};
        const Stored<T> stored[2] = {
            {prompt_keys, prompt_keys + prompt_values, prompt_length[prompt], own_next[0], own_next[1]},
            {own_keys, own_keys + own_values, count, {following, count}, {following + own_values, count}}};
        const int64_t first = key_head * shared;
        for (int64_t s = 0; s < shared; s += kTogether) {
          const T* q = query + row * n.row_stride + (first + s) * n.size;
          T* to = out + (row * n.heads + first + s) * n.size;
          switch (std::min<int64_t>(kTogether, shared - s)) {
            case 1: attention_of_heads<T, 1>(q, stored, to, scale, n.size, scratch); break;
            case 2: attention_of_heads<T, 2>(q, stored, to, scale, n.size, scratch); break;
            case 3: attention_of_heads<T, 3>(q, stored, to, scale, n.size, scratch); break;
            default: attention_of_heads<T, kTogether>(q, stored, to, scale, n.size, scratch);
          }
        }
      }
  }
}

}  // namespace
