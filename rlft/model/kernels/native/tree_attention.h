// Attention in a packed row whose sequences form a tree, and its gradient (tree_attention.py).
//
// A segment of the row attends to the whole of those that it continues, and causally to itself. Scores are computed for
// a tile of queries at a time, stay in the cache and are not kept: the gradient computes them again, from the logarithm
// of what the exponentials of a query's scores add up to, https://arxiv.org/abs/2205.14135. Keys and values are laid
// out in panels first (products.h), once for all who attend to them. The gradients of a segment's keys and values are
// sums over all segments behind it: they are added up in shares of the row, always the same ones, and then in their
// order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "products.h"
#include "softmax.h"
#include "units.h"
#include "vectors.h"

namespace {

constexpr int64_t kUnits = 12;  // key heads times shares of the row, of the gradients: work for as many threads

struct TreeShape {
  int64_t segments, heads, key_heads, size;  // size: of a head
};

struct Segment {
  int64_t start, length, parent;  // start: negative for tokens before the row; parent: what it continues, -1 for nothing
};

struct Tile {
  int64_t segment, first, count;  // queries of a segment
};

// Elements of a head, of tokens that lie `stride` apart.
template <class T>
struct Tokens {
  const T* first;
  int64_t stride;
};

// What segments and tiles a row has. Keys of a segment fill `padded` columns, those of all segments follow one another.
template <class T>
struct Tree {
  static constexpr int64_t kColumns = Product<T>::kColumns;
  const TreeShape n;
  const Segment* segments;
  const T* heads;    // (tokens of the row, heads + 2 key_heads, size): queries, keys, values
  const T* earlier;  // (2, key_heads, tokens before the row, size): keys, values
  int64_t shared, width, columns = 0;  // query heads of a key head, elements of a token, columns of all segments
  std::vector<int64_t> offset;         // of each segment's columns
  std::vector<std::vector<int64_t>> path;  // of each segment: the first one that it continues, and so on to itself
  std::vector<Tile> tiles;

  Tree(const int64_t* given, const TreeShape& shape, const T* heads, const T* earlier)
      : n(shape), segments(reinterpret_cast<const Segment*>(given)), heads(heads), earlier(earlier),
        shared(n.heads / n.key_heads), width((n.heads + 2 * n.key_heads) * n.size), offset(n.segments),
        path(n.segments) {
    const int64_t most = std::max<int64_t>(1, kTileRows / shared);
    for (int64_t s = 0; s < n.segments; ++s) {
      const int64_t length = segments[s].length, count = (length + most - 1) / most;
      if (segments[s].parent >= 0) path[s] = path[segments[s].parent];
      path[s].push_back(s);
      offset[s] = columns;
      columns += padded(s);
      if (segments[s].start < 0) continue;
      for (int64_t i = 0; i < count; ++i)
        tiles.push_back({s, i * length / count, (i + 1) * length / count - i * length / count});
    }
  }

  int64_t padded(int64_t segment) const { return rounded_up(segments[segment].length, kColumns); }

  // Columns of a segment that a tile's queries see some of.
  int64_t seen(int64_t segment, const Tile& tile) const {
    return segment == tile.segment ? rounded_up(tile.first + tile.count, kColumns) : padded(segment);
  }

  int64_t seen(const Tile& tile) const {
    int64_t sum = 0;
    for (int64_t segment : path[tile.segment]) sum += seen(segment, tile);
    return sum;
  }

  int64_t rows(const Tile& tile) const { return tile.count * shared; }

  int64_t most_rows() const { return rounded_up(std::max(shared, kTileRows), kPair); }

  int64_t most_seen() const {
    int64_t most = 0;
    for (const Tile& tile : tiles) most = std::max(most, seen(tile));
    return most;
  }

  // Where each of so many shares of the tiles begins, and the end: consecutive tiles, about as many scores in each.
  std::vector<int64_t> in_shares(int64_t shares) const {
    std::vector<int64_t> bounds = {0};
    int64_t sum = 0, done = 0;
    for (const Tile& tile : tiles) sum += tile.count * seen(tile);
    for (size_t i = 0; i < tiles.size(); ++i) {
      while (done * shares >= sum * int64_t(bounds.size())) bounds.push_back(i);
      done += tiles[i].count * seen(tiles[i]);
    }
    bounds.resize(shares + 1, tiles.size());
    return bounds;
  }

  int64_t first_token(const Tile& tile) const { return segments[tile.segment].start + tile.first; }

  // The `head`-th of a token's heads: queries, then keys, then values.
  const T* head(int64_t token, int64_t head) const { return heads + token * width + head * n.size; }

  // A segment's keys, or its values.
  Tokens<T> kept(int64_t segment, int64_t key_head, bool of_values) const {
    const int64_t place = of_values * n.key_heads + key_head, start = segments[segment].start, before = -segments[0].start;
    if (start < 0) return {earlier + (place * before + before + start) * n.size, n.size};
    return {head(start, n.heads + place), width};
  }
};

// Keys or values of all segments in panels: tokens as columns, or a head's elements as columns.
template <class T>
struct Panels {
  const Tree<T>& tree;
  std::unique_ptr<T[]> memory;

  explicit Panels(const Tree<T>& tree) : tree(tree), memory(unset<T>(tree.n.key_heads * tree.columns * tree.n.size)) {}

  T* of(int64_t segment, int64_t key_head) const {
    return memory.get() + (key_head * tree.columns + tree.offset[segment]) * tree.n.size;
  }

  // The panel for a head's elements from `column` on; its inputs are the segment's tokens.
  const T* of_elements(int64_t segment, int64_t key_head, int64_t column) const {
    return of(segment, key_head) + column * tree.padded(segment);
  }

  void lay_out_tokens(int64_t segment, int64_t key_head, bool of_values) {
    const Tokens<T> from = tree.kept(segment, key_head, of_values);
    panels_of_tokens(from.first, from.stride, tree.segments[segment].length, tree.n.size, of(segment, key_head));
  }

  void lay_out_elements(int64_t segment, int64_t key_head, bool of_values) {
    const Tokens<T> from = tree.kept(segment, key_head, of_values);
    panels_of_elements(from.first, from.stride, tree.segments[segment].length, tree.n.size, of(segment, key_head),
                       tree.padded(segment));
  }
};

// What one thread needs for one tile after another.
template <class T>
struct TileWork {
  static constexpr int64_t kColumns = Tree<T>::kColumns;
  const Tree<T>& tree;
  const int64_t size, most_rows;
  std::unique_ptr<T[]> query, narrowed;
  std::unique_ptr<float[]> scores, sums;

  explicit TileWork(const Tree<T>& tree)
      : tree(tree), size(tree.n.size), most_rows(tree.most_rows()), query(unset<T>(most_rows * size)),
        narrowed(unset<T>(most_rows * tree.most_seen())), scores(unset<float>(most_rows * tree.most_seen())),
        sums(unset<float>(most_rows * size)) {}

  // A tile's rows (count, shared, size) of tokens that lie `stride` apart; zeros up to a whole number of pairs.
  void gather(const T* first, int64_t stride, const Tile& tile, T* rows) const {
    const int64_t each = tree.shared * size, used = tree.rows(tile);
    for (int64_t i = 0; i < tile.count; ++i) std::copy(first + i * stride, first + i * stride + each, rows + i * each);
    std::fill(rows + used * size, rows + rounded_up(used, kPair) * size, T{});
  }

  // to (rows, stride): rows times the tokens that the tile sees, which `panels` have as columns.
  void times_tokens(const T* rows, const Panels<T>& panels, const Tile& tile, int64_t key_head, float* to,
                    int64_t stride) const {
    for (int64_t segment : tree.path[tile.segment]) {
      const int64_t seen = tree.seen(segment, tile);
      for (int64_t column = 0; column < seen; column += kColumns)
        add_products(tree.rows(tile), rows, size, panels.of(segment, key_head) + column * size, size, to + column,
                     stride, true);
      to += seen;
    }
  }

  // sums (rows, size): `narrowed` (rows, stride) times the tokens that the tile sees, with their elements as columns.
  void times_elements(const Panels<T>& panels, const Tile& tile, int64_t key_head, int64_t stride) const {
    const T* x = narrowed.get();
    bool is_first = true;
    for (int64_t segment : tree.path[tile.segment]) {
      const int64_t seen = tree.seen(segment, tile);
      for (int64_t column = 0; column < size; column += kColumns)
        add_products(tree.rows(tile), x, stride, panels.of_elements(segment, key_head, column), seen,
                     sums.get() + column, size, is_first);
      x += seen;
      is_first = false;
    }
  }

  // Scores that a row does not see become minus infinity.
  void hide(const Tile& tile, int64_t row, int64_t stride) const {
    float* from = scores.get() + row * stride;
    for (int64_t segment : tree.path[tile.segment]) {
      const int64_t seen = tree.seen(segment, tile);
      const bool is_own = segment == tile.segment;
      const int64_t there = is_own ? tile.first + row / tree.shared + 1 : tree.segments[segment].length;
      std::fill(from + there, from + seen, -INFINITY);
      from += seen;
    }
  }

  void attend(const Panels<T>& keys, const Panels<T>& values, T* out, float* logs, const Tile& tile, int64_t key_head,
              float scale) const {
    const int64_t rows = tree.rows(tile), stride = tree.seen(tile), token = tree.first_token(tile);
    const int64_t first = key_head * tree.shared;
    gather(tree.head(token, first), tree.width, tile, query.get());
    times_tokens(query.get(), keys, tile, key_head, scores.get(), stride);
    float totals[kTogether], largest[kTogether];
    for (int64_t start = 0; start < rows; start += kTogether) {
      const int64_t end = std::min(start + kTogether, rows);
      float* of_rows = scores.get() + start * stride;
      for (int64_t row = start; row < end; ++row) hide(tile, row, stride);
      softmax<kTogether>(of_rows, stride, stride, scale, totals, largest);  // also of what lies behind the last row
      for (int64_t row = start; row < end; ++row) {
        const float share = 1 / totals[row - start];
        for (int64_t i = 0; i < stride; i += kLanes)
          store_narrow(load<Floats>(scores.get() + row * stride + i) * share, narrowed.get() + row * stride + i);
        if (logs)
          logs[(token + row / tree.shared) * tree.n.heads + first + row % tree.shared] =
              largest[row - start] + std::log(totals[row - start]);
      }
    }
    times_elements(values, tile, key_head, stride);
    write(out + (token * tree.n.heads + first) * size, tree.n.heads * size, tile);
  }

  // The sums as a tile's rows of tokens that lie `stride` apart.
  void write(T* first, int64_t stride, const Tile& tile) const {
    const int64_t each = tree.shared * size;
    for (int64_t i = 0; i < tile.count; ++i)
      for (int64_t k = 0; k < each; k += kLanes)
        store_narrow(load<Floats>(sums.get() + i * each + k), first + i * stride + k);
  }
};

// Gradients of one share's keys and values of a key head, the other way round: (size, padded) of each segment.
struct Gradients {
  std::unique_ptr<float[]> keys, values;
  std::vector<char> is_there;  // of each segment

  template <class T>
  explicit Gradients(const Tree<T>& tree)
      : keys(unset<float>(tree.columns * tree.n.size)), values(unset<float>(tree.columns * tree.n.size)),
        is_there(tree.n.segments) {}

  template <class T>
  void begin(const Tree<T>& tree, int64_t segment) {
    if (is_there[segment]) return;
    is_there[segment] = 1;
    const int64_t start = tree.offset[segment] * tree.n.size, end = start + tree.padded(segment) * tree.n.size;
    std::fill(keys.get() + start, keys.get() + end, 0.0f);
    std::fill(values.get() + start, values.get() + end, 0.0f);
  }
};

// With S = scale Q K', P = softmax(S), O = P V:
// dV = P' dO,   dS = P (dO V' - rowsum(P dO V')),   dQ = scale dS K,   dK = scale dS' Q
template <class T>
struct GradientWork : TileWork<T> {
  using Base = TileWork<T>;
  using Base::kColumns, Base::tree, Base::size, Base::most_rows, Base::query, Base::narrowed, Base::scores;
  std::unique_ptr<T[]> grad, query_across, grad_across, panel;
  std::unique_ptr<float[]> slopes;

  explicit GradientWork(const Tree<T>& tree)
      : Base(tree), grad(unset<T>(most_rows * size)), query_across(unset<T>(most_rows * size)),
        grad_across(unset<T>(most_rows * size)), panel(unset<T>(most_rows * kColumns)),
        slopes(unset<float>(most_rows * tree.most_seen())) {}

  void run(const T* grad_out, const float* logs, const Panels<T>& keys, const Panels<T>& values,
           const Panels<T>& keys_across, T* grad_heads, Gradients& gradients, const Tile& tile, int64_t key_head,
           float scale) const {
    const int64_t rows = tree.rows(tile), stride = tree.seen(tile), token = tree.first_token(tile);
    const int64_t first = key_head * tree.shared, per_token = tree.n.heads * size;
    this->gather(tree.head(token, first), tree.width, tile, query.get());
    this->gather(grad_out + token * per_token + first * size, per_token, tile, grad.get());
    this->times_tokens(query.get(), keys, tile, key_head, scores.get(), stride);
    this->times_tokens(grad.get(), values, tile, key_head, slopes.get(), stride);
    for (int64_t row = 0; row < rows; ++row) {
      this->hide(tile, row, stride);
      slope(row, stride, logs[(token + row / tree.shared) * tree.n.heads + first + row % tree.shared], scale);
    }
    this->times_elements(keys_across, tile, key_head, stride);
    this->write(grad_heads + token * tree.width + first * size, tree.width, tile);
    turn(query.get(), rows, query_across.get());
    turn(grad.get(), rows, grad_across.get());
    int64_t column = 0;
    for (int64_t segment : tree.path[tile.segment]) {
      gradients.begin(tree, segment);
      const int64_t place = tree.offset[segment] * size, padded = tree.padded(segment), seen = tree.seen(segment, tile);
      for (int64_t c = 0; c < seen; c += kColumns, column += kColumns) {
        add_rows(grad_across.get(), scores.get() + column, stride, rows, gradients.values.get() + place + c, padded);
        add_rows(query_across.get(), slopes.get() + column, stride, rows, gradients.keys.get() + place + c, padded);
      }
    }
  }

  // A row's scores become P, its slopes, which are dO V', become scale dS.
  void slope(int64_t row, int64_t stride, float log_total, float scale) const {
    float *const p = scores.get() + row * stride, *const ds = slopes.get() + row * stride;
    Floats sum = {};
    for (int64_t i = 0; i < stride; i += kLanes) {
      const Floats x = exponential(load<Floats>(p + i) * scale - log_total);
      store(x, p + i);
      sum += x * load<Floats>(ds + i);
    }
    const float mean = across(sum, plus);
    for (int64_t i = 0; i < stride; i += kLanes) {
      const Floats x = load<Floats>(p + i) * (load<Floats>(ds + i) - mean) * scale;
      store(x, ds + i);
      store_narrow(x, narrowed.get() + row * stride + i);
    }
  }

  // Rows (rows, size) as (size, rows rounded up to whole vectors)
  void turn(const T* from, int64_t rows, T* to) const {
    const int64_t stride = whole_vectors(rows);
    for (int64_t row = 0; row < rows; row += kLanes)
      for (int64_t k = 0; k < size; k += kLanes) {
        Words block[kLanes];
        for (int i = 0; i < kLanes; ++i) block[i] = Words(load_wide(from + (row + i) * size + k));
        transpose(block);
        for (int i = 0; i < kLanes; ++i) store_narrow(Floats(block[i]), to + (k + i) * stride + row);
      }
  }

  // to (size, to_stride) grows by x (size, rows) times kColumns columns of y (rows, stride).
  void add_rows(const T* x, const float* y, int64_t stride, int64_t rows, float* to, int64_t to_stride) const {
    const int64_t even = rounded_up(rows, kInputs<T>);
    for (int64_t row = 0; row < rows; row += kInputs<T>)
      for (int64_t c = 0; c < kColumns; c += kLanes) {
        const float* from = y + row * stride + c;
        narrow_step(load<Floats>(from), row + 1 < rows ? load<Floats>(from + stride) : Floats{},
                    panel.get() + row * kColumns + c * kInputs<T>);
      }
    add_products(size, x, whole_vectors(rows), panel.get(), even, to, to_stride, false);
  }

  static void narrow_step(Floats first, Floats, float* to) { store(first, to); }
  static void narrow_step(Floats first, Floats second, BFloat16* to) { store_pair(Pair{first, second}, to); }
};

// The gradients of a segment's keys and values of a head: what all shares have of them.
template <class T>
void write_gradients(const Tree<T>& tree, const std::vector<Gradients>& shares, int64_t segment, int64_t key_head,
                     T* grad_heads) {
  const int64_t size = tree.n.size, padded = tree.padded(segment), place = tree.offset[segment] * size;
  for (const bool of_values : {false, true}) {
    const int64_t head = tree.n.heads + of_values * tree.n.key_heads + key_head;
    T* to = grad_heads + tree.segments[segment].start * tree.width + head * size;
    for (int64_t token = 0; token < tree.segments[segment].length; token += kLanes)
      for (int64_t k = 0; k < size; k += kLanes) {
        Floats sums[kLanes] = {};
        for (size_t unit = key_head; unit < shares.size(); unit += tree.n.key_heads) {
          if (!shares[unit].is_there[segment]) continue;
          const float* from = (of_values ? shares[unit].values : shares[unit].keys).get() + place;
          for (int i = 0; i < kLanes; ++i) sums[i] += load<Floats>(from + (k + i) * padded + token);
        }
        Words block[kLanes];
        for (int i = 0; i < kLanes; ++i) block[i] = Words(sums[i]);
        transpose(block);
        for (int64_t i = 0; i < std::min<int64_t>(kLanes, tree.segments[segment].length - token); ++i)
          store_narrow(Floats(block[i]), to + (token + i) * tree.width + k);
      }
  }
}

// earlier: null where no segment lies before the row; logs: null where no gradient follows.
template <class T>
void tree_attention(const T* heads, const int64_t* segments, const T* earlier, T* out, float* logs,
                    const TreeShape& shape, float scale) {
  const Tree<T> tree(segments, shape, heads, earlier);
  const int64_t key_heads = shape.key_heads;
  Panels<T> keys(tree), values(tree);
  for_each_unit(shape.segments * key_heads, [&] {
    return [&](int64_t unit) {
      const int64_t segment = unit / key_heads, head = unit % key_heads;
      keys.lay_out_tokens(segment, head, false);
      values.lay_out_elements(segment, head, true);
    };
  });
  for_each_unit(int64_t(tree.tiles.size()) * key_heads, [&] {
    return [&, work = TileWork<T>(tree)](int64_t unit) {
      work.attend(keys, values, out, logs, tree.tiles[unit / key_heads], unit % key_heads, scale);
    };
  });
}

template <class T>
void tree_attention_backward(const T* heads, const int64_t* segments, const float* logs, const T* grad, T* grad_heads,
                             const TreeShape& shape, float scale) {
  const Tree<T> tree(segments, shape, heads, nullptr);
  const int64_t key_heads = shape.key_heads, shares = (kUnits + key_heads - 1) / key_heads;
  Panels<T> keys(tree), values(tree), keys_across(tree);
  for_each_unit(shape.segments * key_heads, [&] {
    return [&](int64_t unit) {
      const int64_t segment = unit / key_heads, head = unit % key_heads;
      keys.lay_out_tokens(segment, head, false);
      keys_across.lay_out_elements(segment, head, false);
      values.lay_out_tokens(segment, head, true);
    };
  });
  const std::vector<int64_t> bounds = tree.in_shares(shares);
  std::vector<Gradients> sums;
  for (int64_t unit = 0; unit < shares * key_heads; ++unit) sums.emplace_back(tree);
  for_each_unit(shares * key_heads, [&] {
    return [&, work = GradientWork<T>(tree)](int64_t unit) {
      const int64_t share = unit / key_heads;
      for (int64_t i = bounds[share]; i < bounds[share + 1]; ++i)
        work.run(grad, logs, keys, values, keys_across, grad_heads, sums[unit], tree.tiles[i], unit % key_heads,
                 scale);
    };
  });
  for_each_unit(shape.segments * key_heads, [&] {
    return [&](int64_t unit) { write_gradients(tree, sums, unit / key_heads, unit % key_heads, grad_heads); };
  });
}

}  // namespace
