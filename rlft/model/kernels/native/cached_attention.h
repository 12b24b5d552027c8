// Attention of one new token per row over its prompt's keys and its own, which lie in a cache (kv_cache.py).
//
// A prompt's keys and values lie in panels (products.h): keys with tokens as columns, values with a head's elements as
// columns. All rows behind a prompt are multiplied with them together. A row's own, which grow by one token in each
// step, lie one after the other and are read for this row alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "products.h"
#include "softmax.h"
#include "units.h"
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

struct CacheShape {
  int64_t rows, row_stride, heads, key_heads, size, prompt_capacity, prompt_columns, row_capacity, row_columns;
};

static_assert(32 % Product<float>::kColumns == 0 && 32 % Product<BFloat16>::kColumns == 0,
              "a prompt has room for a multiple of 32 tokens (VECTOR in library.py), which are whole panels");

// A prompt's keys and values (2, heads, tokens, size) in panels, where each head has room for `columns` tokens.
template <class T>
void keep_prompt(const T* kept, T* keys, T* values, int64_t heads, int64_t tokens, int64_t columns, int64_t size) {
#pragma omp parallel for schedule(static) if (heads * tokens * size > kSmall)
  for (int64_t head = 0; head < heads; ++head) {
    const T *key = kept + head * tokens * size, *value = key + heads * tokens * size;
    panels_of_tokens(key, size, tokens, size, keys + head * columns * size);
    panels_of_elements(value, size, tokens, size, values + head * columns * size, columns);
  }
}

// Two vectors of elements in their order, as a pair.
inline Pair as_pair(const float* from, const float*) { return load_pair(from); }
inline Pair as_pair(const float* from, const BFloat16*) {
  const Floats x = load<Floats>(from), y = load<Floats>(from + kLanes);
  return {shuffled(x, y, kPlaces + kPlaces), shuffled(x, y, kPlaces + kPlaces + 1)};
}

// Rows of the batch behind one prompt, `order` from `first` on.
struct Group {
  int64_t prompt, first, count;
};

// What is read of a step.
template <class T>
struct Cache {
  const T *query, *fresh, *prompts;
  T* own;
  const int64_t *prompt_of_row, *prompt_length, *age;
  const CacheShape& n;
  int64_t shared;                         // query heads of a key head
  std::vector<int64_t> order;             // rows, by prompt
  std::vector<Group> groups;              // at most as many rows as are computed together
  int64_t most_before = 0, most_own = 0;  // columns for a prompt's keys, and for a row's own

  Cache(const T* query, const T* fresh, const T* prompts, T* own, const int64_t* prompt_of_row,
        const int64_t* prompt_length, const int64_t* age, const CacheShape& n)
      : query(query), fresh(fresh), prompts(prompts), own(own), prompt_of_row(prompt_of_row),
        prompt_length(prompt_length), age(age), n(n), shared(n.heads / n.key_heads), order(n.rows) {
    for (int64_t row = 0; row < n.rows; ++row) order[row] = row;
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return prompt_of_row[a] < prompt_of_row[b]; });
    const int64_t most = std::max<int64_t>(1, kTileRows / shared);
    for (int64_t first = 0, end; first < n.rows; first = end) {
      const int64_t prompt = prompt_of_row[order[first]];
      for (end = first; end < n.rows && prompt_of_row[order[end]] == prompt; ++end)
        most_own = std::max(most_own, whole_vectors(age[order[end]] + 1));
      most_before = std::max(most_before, before(prompt));
      const int64_t count = end - first, parts = (count + most - 1) / most;
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t begin = i * count / parts;
        groups.push_back({prompt, first + begin, (i + 1) * count / parts - begin});
      }
    }
  }

  int64_t before(int64_t prompt) const { return rounded_up(prompt_length[prompt], Product<T>::kColumns); }

  int64_t most_rows() const { return std::max(shared, kTileRows); }
};

// What one thread needs for one group after another.
template <class T>
struct GroupWork {
  static constexpr int64_t kColumns = Product<T>::kColumns;
  const Cache<T>& cache;
  const CacheShape& n;
  const int64_t size, shared, own_values;  // own_values: where a row's values lie, from its keys on
  std::unique_ptr<T[]> query, narrowed;
  std::unique_ptr<float[]> wide_query, scores, of_prompt, of_row, totals;

  explicit GroupWork(const Cache<T>& cache)
      : cache(cache), n(cache.n), size(n.size), shared(cache.shared),
        own_values(n.row_capacity * n.key_heads * n.row_columns * size), query(unset<T>(cache.most_rows() * size)),
        narrowed(unset<T>(cache.most_rows() * cache.most_before)), wide_query(unset<float>(kTogether * size)),
        scores(unset<float>(cache.most_rows() * (cache.most_before + cache.most_own))),
        of_prompt(unset<float>(cache.most_rows() * size)), of_row(unset<float>(cache.most_rows() * size)),
        totals(unset<float>(cache.most_rows())) {}

  T* own_keys(int64_t row, int64_t key_head) const {
    return cache.own + (row * n.key_heads + key_head) * n.row_columns * size;
  }

  const T* prompt_keys(int64_t prompt, int64_t key_head) const {
    return cache.prompts + (prompt * n.key_heads + key_head) * n.prompt_columns * size;
  }

  // next: the keys that are read afterwards.
  void attend(const Group& group, int64_t key_head, const T* next, T* out, float scale) const {
    const int64_t rows = group.count * shared, first = key_head * shared;
    const int64_t columns = cache.before(group.prompt), stride = columns + cache.most_own;
    const T* keys = prompt_keys(group.prompt, key_head);
    const T* values = keys + n.prompt_capacity * n.key_heads * n.prompt_columns * size;
    const int64_t* members = cache.order.data() + group.first;
    for (int64_t i = 0; i < group.count; ++i) {
      const T* from = cache.query + members[i] * n.row_stride + first * size;
      std::copy(from, from + shared * size, query.get() + i * shared * size);
    }
    for (int64_t column = 0; column < columns; column += kColumns)
      add_products(rows, query.get(), size, keys + column * size, size, scores.get() + column, stride, true,
                   column + kColumns < columns ? keys + (column + kColumns) * size : values);
    for (int64_t row = 0; row < rows; ++row) {
      float* end = scores.get() + row * stride + columns;
      std::fill(end - columns + cache.prompt_length[group.prompt], end, -INFINITY);
    }
    for (int64_t i = 0; i < group.count; ++i)
      with_own(members[i], i + 1 < group.count ? members[i + 1] : -1, key_head, i * shared, columns, stride, scale);
    const int64_t inputs = rounded_up(cache.prompt_length[group.prompt], kInputs<T>);
    for (int64_t column = 0; column < size; column += kColumns)
      add_products(rows, narrowed.get(), columns, values + column * n.prompt_columns, inputs, of_prompt.get() + column,
                   size, true, column + kColumns < size ? values + (column + kColumns) * n.prompt_columns : next);
    for (int64_t row = 0; row < rows; ++row) {
      T* to = out + (members[row / shared] * n.heads + first + row % shared) * size;
      for (int64_t i = 0; i < size; i += kPair) {
        const Pair x = as_pair(of_prompt.get() + row * size + i, query.get());
        const Pair y = load_pair(of_row.get() + row * size + i);
        store_pair(Pair{(x.first + y.first) / totals[row], (x.second + y.second) / totals[row]}, to + i);
      }
    }
  }

  // Scores, and then weights, of a row of the batch: with its prompt's tokens, which become `narrowed`, and with its
  // own, whose weighted values become `of_row`. `at`: where its heads lie among those of the group.
  void with_own(int64_t row, int64_t next_row, int64_t key_head, int64_t at, int64_t columns, int64_t stride,
                float scale) const {
    const int64_t count = cache.age[row] + 1;
    T* keys = own_keys(row, key_head);
    if (cache.fresh) {
      const T* key = cache.fresh + row * n.row_stride + key_head * size;
      std::copy(key, key + size, keys + (count - 1) * size);
      key += n.key_heads * size;
      std::copy(key, key + size, keys + own_values + (count - 1) * size);
    }
    Following<T> next = {keys + own_values, count};
    const Following<T> next_keys = next_row < 0 ? Following<T>{nullptr, 0}
                                                : Following<T>{own_keys(next_row, key_head), cache.age[next_row] + 1};
    for (int64_t s = 0; s < shared; s += kTogether, next = {nullptr, 0}) {
      const int64_t first = at + s;
      switch (std::min<int64_t>(kTogether, shared - s)) {
        case 1: heads<1>(first, keys, count, next, next_keys, columns, stride, scale); break;
        case 2: heads<2>(first, keys, count, next, next_keys, columns, stride, scale); break;
        case 3: heads<3>(first, keys, count, next, next_keys, columns, stride, scale); break;
        default: heads<kTogether>(first, keys, count, next, next_keys, columns, stride, scale);
      }
    }
  }

  template <int S>
  void heads(int64_t first, const T* keys, int64_t count, Following<T> next_values, Following<T> next_keys,
             int64_t columns, int64_t stride, float scale) const {
    float* const from = scores.get() + first * stride;
    for (int64_t i = 0; i < S * size; i += kPair) {
      store_pair(load_pair(query.get() + first * size + i), wide_query.get() + i);
      store_pair(Pair{}, of_row.get() + first * size + i);
    }
    if (size == 64)
      dot_keys<T, S, 64>(wide_query.get(), keys, next_values, from + columns, count, stride, size);
    else if (size == 128)
      dot_keys<T, S, 128>(wide_query.get(), keys, next_values, from + columns, count, stride, size);
    else
      dot_keys<T, S, 0>(wide_query.get(), keys, next_values, from + columns, count, stride, size);
    float largest[S];
    softmax<S>(from, stride, columns + count, scale, totals.get() + first, largest);
    for (int s = 0; s < S; ++s)
      for (int64_t i = 0; i < columns; i += kLanes)
        store_narrow(load<Floats>(from + s * stride + i), narrowed.get() + (first + s) * columns + i);
    add_values<T, S>(from + columns, keys + own_values, next_keys, of_row.get() + first * size, count, stride, size);
  }
};

// fresh: the rows' new keys and values, each (key_heads, size), which are stored first; null where they have been.
template <class T>
void cached_attention(const T* query, const T* fresh, const T* prompts, T* own, const int64_t* prompt_of_row,
                      const int64_t* prompt_length, const int64_t* age, T* out, const CacheShape& shape, float scale) {
  const Cache<T> cache(query, fresh, prompts, own, prompt_of_row, prompt_length, age, shape);
  const int64_t units = cache.groups.size() * shape.key_heads;
#pragma omp parallel
  {
    const GroupWork<T> work(cache);
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t following = std::min(unit + 1, units - 1);
      const T* next = work.prompt_keys(cache.groups[following / shape.key_heads].prompt, following % shape.key_heads);
      work.attend(cache.groups[unit / shape.key_heads], unit % shape.key_heads, next, out, scale);
    }
  }
}

}  // namespace
