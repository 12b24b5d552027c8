// Passes over memory that torch makes in several operations, each made once, products with weights that stay, and all
// layers of a decode step: see kernels.py, which builds this file.
//
// Every row is computed by one thread in a fixed order with float32 sums, so that results do not depend on the number
// of threads or on the other rows. Values are rounded to their type once, when they are written.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

struct BFloat16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(BFloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }

template <class T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline BFloat16 narrow<BFloat16>(float x) {  // to the nearest, ties to even, as torch rounds
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {uint16_t(x != x ? 0x7fc0 : rounded)};
}

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr int kPair = 2 * kLanes;  // elements that are loaded together, as two vectors
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));
#ifdef __AVX512F__
constexpr Ints kPlaces = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
constexpr Ints kPlaces = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

template <class V, class T>
inline V load(const T* from) {
  V x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }

// Elements as two vectors: of bfloat16 those with even and those with odd places, which needs no shuffling.
struct Pair {
  Floats first, second;
};
inline Pair load_pair(const float* from) { return {load<Floats>(from), load<Floats>(from + kLanes)}; }
inline Pair load_pair(const BFloat16* from) {
  const Words both = load<Words>(from);
  return {Floats(both << 16), Floats(both & 0xffff0000)};
}
inline void store_pair(Pair x, float* to) {
  store(x.first, to);
  store(x.second, to + kLanes);
}
inline Words rounded(Floats x) {  // as narrow does, in the upper halves
  const Words bits = Words(x);
  return x == x ? bits + 0x7fff + ((bits >> 16) & 1) : Words{} + 0x7fc00000;
}
inline void store_pair(Pair x, BFloat16* to) {
  const Words both = (rounded(x.first) >> 16) | (rounded(x.second) & 0xffff0000);
  std::memcpy(to, &both, sizeof both);
}

// Elements in their order
using HalfWords = uint16_t __attribute__((vector_size(2 * kLanes)));
inline Floats load_wide(const float* from) { return load<Floats>(from); }
inline Floats load_wide(const BFloat16* from) {
  return Floats(__builtin_convertvector(load<HalfWords>(from), Words) << 16);
}
inline void store_narrow(Floats x, float* to) { store(x, to); }
inline void store_narrow(Floats x, BFloat16* to) {
  const HalfWords words = __builtin_convertvector(rounded(x) >> 16, HalfWords);
  std::memcpy(to, &words, sizeof words);
}

// e^x to 3 ulp, 0 below -87, without branches or calls: 2^n times the series of the rest.
inline Floats exponential(Floats given) {
  Floats x = given < -87.0f ? Floats{} - 87.0f : given;
  x = x > 88.0f ? Floats{} + 88.0f : x;
  const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: its last bits are n, rounded
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // log 2 in two parts
  const Floats series =
      1.0f + r * (1.0f + r * (0.5f + r * (1.66666672e-1f + r * (4.16664966e-2f + r * (8.33336823e-3f + r * 1.39304e-3f)))));
  return given < -87.0f ? Floats{} : Floats((Ints(shifted) << 23) + 0x3f800000) * series;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

inline int64_t whole_vectors(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

constexpr int64_t kSmall = 1 << 13;  // elements that are not worth a second thread

// One number from all lanes

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats plus(Floats a, Floats b) { return a + b; }

template <class Operation>
inline float across(Floats x, Operation operation) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) x = operation(x, __builtin_shuffle(x, kPlaces ^ step));
  return x[0];
}

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

// The distribution of one token

// Log-probs of the targets and entropies of softmax(x sharpness), nats. With `slopes`, x becomes softmax - onehot(target).
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

// Attention of one new token per row over its prompt's keys and its own

constexpr int kTogether = 4;  // query heads of one key head that share its loads, and rows of a softmax

// The sum of each of kLanes vectors: neighbours are added up, from two vectors at a time, until one is left.
template <int Count = kLanes>
inline Floats sums_of(Floats* x) {
  if constexpr (Count > 1) {
    const Ints kEven = kPlaces + kPlaces;
#pragma GCC unroll 8
    for (int i = 0; i < Count / 2; ++i)
      x[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], kEven) + __builtin_shuffle(x[2 * i], x[2 * i + 1], kEven + 1);
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

// Fetch `width` elements of one that is read next, while this one is computed: each item's are too few for the processor
// to see where they go on.
template <class T>
inline void fetch(Following<T> next, int64_t index, int64_t width, int64_t size) {
  if (index >= next.count) return;
  const char* first = reinterpret_cast<const char*>(next.from + index * size);
  for (int64_t i = 0; i < width * int64_t(sizeof(T)); i += kLine) __builtin_prefetch(first + i, 0, 2);
}

// q (S, size) times keys (count, size), to scores (S, stride). The elements of q lie as load_pair gives those of keys.
// `next`: keys that are fetched meanwhile.
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

// e^(x - max x) in place of scores (Rows, stride), of which the first `count` of each row are given; the sums of rows.
// Rows are computed side by side, since a row's steps wait for each other.
template <int Rows>
inline void softmax(float* scores, int64_t stride, int64_t count, float* totals) {
  Floats largest[Rows], sums[Rows] = {};
  float most[Rows];
  for (int row = 0; row < Rows; ++row) {
    for (int64_t i = count; i % kLanes; ++i) scores[row * stride + i] = -INFINITY;
    largest[row] = load<Floats>(scores + row * stride);
  }
  for (int64_t i = kLanes; i < count; i += kLanes)
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) largest[row] = larger(load<Floats>(scores + row * stride + i), largest[row]);
#pragma GCC unroll 4
  for (int row = 0; row < Rows; ++row) most[row] = across(largest[row], larger);
  for (int64_t i = 0; i < count; i += kLanes)
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) {
      const Floats x = exponential(load<Floats>(scores + row * stride + i) - most[row]);
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
    std::vector<float> room(kTogether * stride);
#pragma omp for schedule(static)
    for (int64_t start = 0; start < rows; start += kTogether) {
      const int64_t num = std::min<int64_t>(kTogether, rows - start);
      float totals[kTogether];
      for (int64_t row = start; row < start + num; ++row) {
        const T *from = scores + row * count, *added = bias + (row / (repeats * width) * width + row % width) * count;
        float* x = room.data() + (row - start) * stride;
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) store(load_wide(from + i) + load_wide(added + i), x + i);
        for (; i < count; ++i) x[i] = wide(from[i]) + wide(added[i]);
      }
      softmax<kTogether>(room.data(), stride, count, totals);  // of a last few rows and whatever lies behind them
      for (int64_t row = start; row < start + num; ++row) {
        const float *x = room.data() + (row - start) * stride, share = 1.0f / totals[row - start];
        T* to = scores + row * count;
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) store_narrow(load<Floats>(x + i) * share, to + i);
        for (; i < count; ++i) to[i] = narrow<T>(x[i] * share);
      }
    }
  }
}

template <class T>
struct Stored {  // keys and values of one sequence and head, count tokens of each
  const T *keys, *values;
  int64_t count;
  Following<T> next_keys, next_values;
};

template <class T, int S, int kSize>
void attend_heads(const T* query, const Stored<T>* stored, T* out, float scale, int64_t size, std::vector<float>& room) {
  const int64_t count = stored[0].count + stored[1].count, stride = whole_vectors(count);
  room.resize(S * (2 * size + stride));
  float *q = room.data(), *sums = q + S * size, *scores = sums + S * size;
  for (int64_t i = 0; i < S * size; i += kPair) {
    const Pair part = load_pair(query + i);
    store_pair(Pair{part.first * scale, part.second * scale}, q + i);
    store_pair(Pair{}, sums + i);
  }
  dot_keys<T, S, kSize>(q, stored[0].keys, stored[0].next_keys, scores, stored[0].count, stride, size);
  dot_keys<T, S, kSize>(q, stored[1].keys, stored[1].next_keys, scores + stored[0].count, stored[1].count, stride, size);
  float totals[S];
  softmax<S>(scores, stride, count, totals);
  add_values<T, S>(scores, stored[0].values, stored[0].next_values, sums, stored[0].count, stride, size);
  add_values<T, S>(scores + stored[0].count, stored[1].values, stored[1].next_values, sums, stored[1].count, stride,
                   size);
  for (int s = 0; s < S; ++s)
    for (int64_t i = s * size; i < (s + 1) * size; i += kPair)
      store_pair(Pair{load<Floats>(sums + i) / totals[s], load<Floats>(sums + i + kLanes) / totals[s]}, out + i);
}

template <class T, int S>
void attend_heads(const T* query, const Stored<T>* stored, T* out, float scale, int64_t size, std::vector<float>& room) {
  if (size == 64)
    attend_heads<T, S, 64>(query, stored, out, scale, size, room);
  else if (size == 128)
    attend_heads<T, S, 128>(query, stored, out, scale, size, room);
  else
    attend_heads<T, S, 0>(query, stored, out, scale, size, room);
}

struct Shape {
  int64_t rows, row_stride, heads, key_heads, size, prompt_capacity, prompt_columns, row_capacity, row_columns;
};

// fresh: the rows' new keys and values, each (key_heads, size), which are kept first; null where they have been.
template <class T>
void attend(const T* query, const T* fresh, const T* prompts, T* own, const int64_t* prompt_of_row,
            const int64_t* prompt_length, const int64_t* age, T* out, const Shape& n, float scale) {
  const int64_t shared = n.heads / n.key_heads;
  const int64_t prompt_values = n.prompt_capacity * n.key_heads * n.prompt_columns * n.size;
  const int64_t own_values = n.row_capacity * n.key_heads * n.row_columns * n.size;
#pragma omp parallel
  {
    std::vector<float> room;
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
            case 1: attend_heads<T, 1>(q, stored, to, scale, n.size, room); break;
            case 2: attend_heads<T, 2>(q, stored, to, scale, n.size, room); break;
            case 3: attend_heads<T, 3>(q, stored, to, scale, n.size, room); break;
            default: attend_heads<T, kTogether>(q, stored, to, scale, n.size, room);
          }
        }
      }
  }
}

// Products with a weight that stays, y = x W^T. A weight lies in panels of kColumns outputs, in each of
// which the inputs follow one another two by two: what one step of a sum needs is read in one go, from the first byte of
// memory to the last. A panel meets all rows before the next one, which is fetched meanwhile: so reading the weight from
// memory and multiplying take place at the same time, and with few rows the product takes no longer than the reading.

#ifdef __AVX512BF16__

constexpr int kColumns = 32;
constexpr int kRows = 13;             // sums of so many rows, of two vectors each, fit in registers
constexpr int64_t kRowsInCache = 256;  // rows whose inputs stay near while they meet all panels

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
void meet(const BFloat16* x, const Panel& panel, int64_t row) {
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
void meet(int64_t rows, const BFloat16* x, const Panel& panel, int64_t row) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      meet<Rows>(x, panel, row);
    else
      meet<Rows - 1>(rows, x, panel, row);
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
        meet(next_row - row, x + row * inputs, panel, row);
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
      x[i] = __builtin_shuffle(above, below, first);
      x[i + step] = __builtin_shuffle(above, below, second);
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

// All layers of a decode step, one token per row: the operations above one after the other, without a call for each,
// which cost as much as the arithmetic where rows are few.

struct Layer {  // weights in panels, null where there is none
  const BFloat16 *input_norm, *input, *input_bias, *query_norm, *key_norm, *output, *output_bias;
  const BFloat16 *inner_norm, *gate, *gate_bias, *up, *up_bias, *down, *down_bias;
};

struct Kept {  // a layer's keys and values, see attend
  const BFloat16* prompts;
  BFloat16* own;
};

struct Step {
  int64_t layers, width, inner;
  float epsilon, scale;
};

// x (rows, width) is what goes into the first layer and then what comes out of the last one; `room` is for rows of
// width, queries, keys and values side by side, what attention gives, and inner.
void decode(BFloat16* x, const Layer* layers, const Kept* kept, const BFloat16* cosine, const BFloat16* signed_sin,
            const int64_t* prompt_of_row, const int64_t* prompt_length, const int64_t* age, BFloat16* room,
            const Shape& n, const Step& step) {
  const int64_t rows = n.rows, width = step.width, inner = step.inner, attended_width = n.heads * n.size;
  const int64_t rotated = n.heads + n.key_heads, all = rotated + n.key_heads;
  BFloat16 *normed = room, *heads = normed + rows * width, *attended = heads + rows * n.row_stride;
  BFloat16* gate = attended + rows * attended_width;
  for (int64_t index = 0; index < step.layers; ++index) {
    const Layer& layer = layers[index];
    rms_norm<BFloat16>(x, layer.input_norm, normed, nullptr, rows, width, step.epsilon);
    linear(normed, layer.input, layer.input_bias, nullptr, heads, rows, width, n.row_stride, kPlain);
    for (int64_t row = 0; layer.query_norm && row < rows; ++row) {
      BFloat16 *queries = heads + row * n.row_stride, *keys = queries + attended_width;
      rms_norm<BFloat16>(queries, layer.query_norm, queries, nullptr, n.heads, n.size, step.epsilon);
      rms_norm<BFloat16>(keys, layer.key_norm, keys, nullptr, n.key_heads, n.size, step.epsilon);
    }
    rotate<BFloat16>(heads, heads, cosine, signed_sin, rows, all, rotated, n.size, false);
    attend<BFloat16>(heads, heads + attended_width, kept[index].prompts, kept[index].own, prompt_of_row, prompt_length,
                     age, attended, n, step.scale);
    linear(attended, layer.output, layer.output_bias, x, x, rows, attended_width, width, kPlus);
    rms_norm<BFloat16>(x, layer.inner_norm, normed, nullptr, rows, width, step.epsilon);
    linear(normed, layer.gate, layer.gate_bias, nullptr, gate, rows, width, inner, kSilu);
    linear(normed, layer.up, layer.up_bias, gate, gate, rows, width, inner, kTimes);
    linear(gate, layer.down, layer.down_bias, x, x, rows, inner, width, kPlus);
  }
}

#endif

}  // namespace

// One name per kernel and type, for ctypes.
#define FOR_TYPE(T, suffix)                                                                                            \
  extern "C" void rms_norm_##suffix(const T* x, const T* weight, T* y, float* scale, int64_t rows, int64_t width,      \
                                    float epsilon) {                                                                   \
    rms_norm(x, weight, y, scale, rows, width, epsilon);                                                               \
  }                                                                                                                    \
  extern "C" void normed_##suffix(const T* x, const T* weight, const float* scale, T* y, int64_t rows,                 \
                                  int64_t width) {                                                                     \
    normed(x, weight, scale, y, rows, width);                                                                          \
  }                                                                                                                    \
  extern "C" void rms_norm_backward_##suffix(const T* grad, const T* x, const T* weight, const float* scale,           \
                                             const T* residual, T* out, int64_t rows, int64_t width) {                 \
    rms_norm_backward(grad, x, weight, scale, residual, out, rows, width);                                             \
  }                                                                                                                    \
  extern "C" void rotate_##suffix(const T* x, T* y, const T* cosine, const T* signed_sin, int64_t tokens, int64_t heads,     \
                                  int64_t rotated, int64_t size, int64_t backwards) {                                  \
    rotate(x, y, cosine, signed_sin, tokens, heads, rotated, size, backwards != 0);                                          \
  }                                                                                                                    \
  extern "C" void gated_silu_##suffix(const T* inner, T* y, int64_t rows, int64_t width) {                             \
    gated_silu(inner, y, rows, width);                                                                                 \
  }                                                                                                                    \
  extern "C" void gated_silu_backward_##suffix(const T* grad, const T* inner, T* out, int64_t rows, int64_t width) {   \
    gated_silu_backward(grad, inner, out, rows, width);                                                                \
  }                                                                                                                    \
  extern "C" void selected_logprobs_##suffix(T* x, const int64_t* targets, float* logprobs, float* entropies,          \
                                             int64_t rows, int64_t size, float sharpness, int64_t slopes) {            \
    selected_logprobs(x, targets, logprobs, entropies, rows, size, sharpness, slopes != 0);                            \
  }                                                                                                                    \
  extern "C" void biased_softmax_##suffix(T* scores, const T* bias, int64_t blocks, int64_t repeats, int64_t width,     \
                                          int64_t count) {                                                             \
    biased_softmax(scores, bias, blocks, repeats, width, count);                                                       \
  }                                                                                                                    \
  extern "C" void attend_##suffix(const T* query, const T* fresh, const T* prompts, T* own,                            \
                                  const int64_t* prompt_of_row, const int64_t* prompt_length, const int64_t* age,      \
                                  T* out, const Shape* shape, float scale) {                                           \
    attend(query, fresh, prompts, own, prompt_of_row, prompt_length, age, out, *shape, scale);                         \
  }

FOR_TYPE(float, float32)
FOR_TYPE(BFloat16, bfloat16)

#ifdef __AVX512BF16__
extern "C" void linear_bfloat16(const BFloat16* x, const BFloat16* panels, const BFloat16* bias, const BFloat16* other,
                                BFloat16* y, int64_t rows, int64_t inputs, int64_t outputs, int64_t operation) {
  linear(x, panels, bias, other, y, rows, inputs, outputs, Operation(operation));
}
extern "C" void panels_of_bfloat16(const BFloat16* weight, BFloat16* panels, int64_t inputs, int64_t outputs) {
  panels_of(weight, panels, inputs, outputs);
}
extern "C" void panels_of_transposed_bfloat16(const BFloat16* weight, BFloat16* panels, int64_t inputs,
                                             int64_t outputs) {
  panels_of_transposed(weight, panels, inputs, outputs);
}
extern "C" void decode_bfloat16(BFloat16* x, const Layer* layers, const Kept* kept, const BFloat16* cosine,
                                const BFloat16* signed_sin, const int64_t* prompt_of_row, const int64_t* prompt_length,
                                const int64_t* age, BFloat16* room, const Shape* shape, const Step* step) {
  decode(x, layers, kept, cosine, signed_sin, prompt_of_row, prompt_length, age, room, *shape, *step);
}
#endif
