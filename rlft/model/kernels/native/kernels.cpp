// The kernels' C interface, which the modules beside this folder call through ctypes: one name per kernel and type.
//
// Every row is computed by one thread in a fixed order with float32 sums, so that results do not depend on the number
// of threads or on the other rows; gradients of keys and values, which are sums over rows, do not depend on threads.
// Values are rounded to their type once, when they are written; those between two products of attention, too.

#include "cached_attention.h"
#include "clang_openmp.h"
#include "elementwise.h"
#include "products.h"
#include "softmax.h"
#include "tree_attention.h"
#include "vectors.h"

// Number of this interface, `ABI` in library.py: raise both with every change of a name, a parameter or a layout.
extern "C" int64_t rlft_kernels_abi() { return 5; }

// Whether the kernels that multiply bfloat16 are there.
extern "C" int64_t rlft_kernels_have_products() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}

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
  extern "C" void rotate_##suffix(const T* x, T* y, const T* cosine, const T* signed_sin, int64_t tokens,              \
                                  int64_t heads, int64_t rotated, int64_t size, int64_t backwards) {                   \
    rotate(x, y, cosine, signed_sin, tokens, heads, rotated, size, backwards != 0);                                    \
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
  extern "C" void biased_softmax_##suffix(T* scores, const T* bias, int64_t blocks, int64_t repeats, int64_t width,    \
                                          int64_t count) {                                                             \
    biased_softmax(scores, bias, blocks, repeats, width, count);                                                       \
  }                                                                                                                    \
  extern "C" void keep_prompt_##suffix(const T* kept, T* keys, T* values, int64_t heads, int64_t tokens,               \
                                       int64_t columns, int64_t size) {                                                \
    keep_prompt(kept, keys, values, heads, tokens, columns, size);                                                     \
  }                                                                                                                    \
  extern "C" void cached_attention_##suffix(const T* query, const T* fresh, const T* prompts, T* own,                  \
                                            const int64_t* prompt_of_row, const int64_t* prompt_length,                \
                                            const int64_t* age, T* out, const CacheShape* shape, float scale) {        \
    cached_attention(query, fresh, prompts, own, prompt_of_row, prompt_length, age, out, *shape, scale);               \
  }

#define PRODUCTS_FOR_TYPE(T, suffix)                                                                                   \
  extern "C" void panels_of_##suffix(const T* weight, T* panels, int64_t inputs, int64_t outputs) {                    \
    panels_of(weight, panels, inputs, outputs);                                                                        \
  }                                                                                                                    \
  extern "C" void panels_of_transposed_##suffix(const T* weight, T* panels, int64_t inputs, int64_t outputs) {         \
    panels_of_transposed(weight, panels, inputs, outputs);                                                             \
  }                                                                                                                    \
  extern "C" void linear_##suffix(const T* x, const T* panels, const T* bias, const T* other, T* y, int64_t rows,      \
                                  int64_t inputs, int64_t outputs, int64_t operation) {                                \
    linear(x, panels, bias, other, y, rows, inputs, outputs, Operation(operation));                                    \
  }                                                                                                                    \
  extern "C" void tree_attention_##suffix(const T* heads, const int64_t* segments, const T* earlier, T* out,           \
                                          float* logs, int64_t count, int64_t num_heads, int64_t key_heads,            \
                                          int64_t size, float scale) {                                                 \
    tree_attention(heads, segments, earlier, out, logs, {count, num_heads, key_heads, size}, scale);                   \
  }                                                                                                                    \
  extern "C" void tree_attention_backward_##suffix(const T* heads, const int64_t* segments, const float* logs,         \
                                                   const T* grad, T* grad_heads, int64_t count, int64_t num_heads,     \
                                                   int64_t key_heads, int64_t size, float scale) {                     \
    tree_attention_backward(heads, segments, logs, grad, grad_heads, {count, num_heads, key_heads, size}, scale);      \
  }

FOR_TYPE(float, float32)
FOR_TYPE(BFloat16, bfloat16)
PRODUCTS_FOR_TYPE(float, float32)

#ifdef __AVX512BF16__
PRODUCTS_FOR_TYPE(BFloat16, bfloat16)
#endif
