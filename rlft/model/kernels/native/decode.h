// All layers of a decode step, one token per row: the operations of the other headers one after the other, without a
// call for each, which costs as much as the arithmetic where rows are few.
#pragma once

#include <cstdint>

#include "cached_attention.h"
#include "elementwise.h"
#include "products.h"
#include "vectors.h"

namespace {

struct Layer {  // weights in panels, null where there is none
  const BFloat16 *input_norm, *input, *input_bias, *query_norm, *key_norm, *output, *output_bias;
  const BFloat16 *inner_norm, *gate, *gate_bias, *up, *up_bias, *down, *down_bias;
};

struct LayerCache {  // a layer's keys and values, see cached_attention
  const BFloat16* prompts;
  BFloat16* own;
};

struct Step {
  int64_t layers, width, inner;
  float epsilon, scale;
};

// x (rows, width) is what goes into the first layer and then what comes out of the last one; `scratch` is for rows of
// width, queries, keys and values side by side, what attention gives, and inner.
void decode(BFloat16* x, const Layer* layers, const LayerCache* caches, const BFloat16* cosine,
            const BFloat16* signed_sin, const int64_t* prompt_of_row, const int64_t* prompt_length, const int64_t* age,
            BFloat16* scratch, const CacheShape& n, const Step& step) {
  const int64_t rows = n.rows, width = step.width, inner = step.inner, attention_width = n.heads * n.size;
  const int64_t rotated = n.heads + n.key_heads, all = rotated + n.key_heads;
  BFloat16 *normed = scratch, *heads = normed + rows * width, *attention = heads + rows * n.row_stride;
  BFloat16* gate = attention + rows * attention_width;
  for (int64_t index = 0; index < step.layers; ++index) {
    const Layer& layer = layers[index];
    rms_norm<BFloat16>(x, layer.input_norm, normed, nullptr, rows, width, step.epsilon);
    linear(normed, layer.input, layer.input_bias, nullptr, heads, rows, width, n.row_stride, kPlain);
    for (int64_t row = 0; layer.query_norm && row < rows; ++row) {
      BFloat16 *queries = heads + row * n.row_stride, *keys = queries + attention_width;
      rms_norm<BFloat16>(queries, layer.query_norm, queries, nullptr, n.heads, n.size, step.epsilon);
      rms_norm<BFloat16>(keys, layer.key_norm, keys, nullptr, n.key_heads, n.size, step.epsilon);
    }
    rotate<BFloat16>(heads, heads, cosine, signed_sin, rows, all, rotated, n.size, false);
    cached_attention<BFloat16>(heads, heads + attention_width, caches[index].prompts, caches[index].own, prompt_of_row,
                               prompt_length, age, attention, n, step.scale);
    linear(attention, layer.output, layer.output_bias, x, x, rows, attention_width, width, kPlus);
    rms_norm<BFloat16>(x, layer.inner_norm, normed, nullptr, rows, width, step.epsilon);
    linear(normed, layer.gate, layer.gate_bias, nullptr, gate, rows, width, inner, kSilu);
    linear(normed, layer.up, layer.up_bias, gate, gate, rows, width, inner, kTimes);
    linear(gate, layer.down, layer.down_bias, x, x, rows, inner, width, kPlus);
  }
}

}  // namespace
