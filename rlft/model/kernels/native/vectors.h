// Numbers, vectors of them, and functions of vectors.
#pragma once

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

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

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else  // NEON, SSE
constexpr int kLanes = 4;
#endif
constexpr int kPair = 2 * kLanes;  // elements that are loaded together, as two vectors
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));
#if defined(__AVX512F__)
constexpr Ints kPlaces = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX__)
constexpr Ints kPlaces = {0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr Ints kPlaces = {0, 1, 2, 3};
#endif

// The elements at `places` of a and, from kLanes on, of b.
template <class V>
[[gnu::always_inline]] inline V shuffled(V a, V b, Ints places) {
#ifdef __clang__  // which has no such function, and makes one instruction of this where the places are constants
  V x = {};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) x[i] = places[i] < kLanes ? a[places[i]] : b[places[i] - kLanes];
  return x;
#else
  return __builtin_shuffle(a, b, places);
#endif
}

template <class V, class T>
inline V load(const T* from) {
  V x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }

// a b + sum, rounded once. GCC makes one instruction of the formula or two, depending on what surrounds it.
inline Floats fused(Floats a, float b, Floats sum) {
#if defined(__AVX512F__)
  return Floats(_mm512_fmadd_ps(__m512(a), _mm512_set1_ps(b), __m512(sum)));
#elif defined(__FMA__)
  return Floats(_mm256_fmadd_ps(__m256(a), _mm256_set1_ps(b), __m256(sum)));
#elif defined(__aarch64__)
  return Floats(vfmaq_n_f32(float32x4_t(sum), float32x4_t(a), b));
#else
  return a * b + sum;
#endif
}

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
  const Floats tail = 1.66666672e-1f + r * (4.16664966e-2f + r * (8.33336823e-3f + r * 1.39304e-3f));
  const Floats series = 1.0f + r * (1.0f + r * (0.5f + r * tail));
  return given < -87.0f ? Floats{} : Floats((Ints(shifted) << 23) + 0x3f800000) * series;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

inline int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }
inline int64_t whole_vectors(int64_t count) { return rounded_up(count, kLanes); }

constexpr int64_t kSmall = 1 << 13;  // elements that are not worth a second thread

// One number from all lanes

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats plus(Floats a, Floats b) { return a + b; }

template <class Operation>
inline float across(Floats x, Operation operation) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) x = operation(x, shuffled(x, x, kPlaces ^ step));
  return x[0];
}

}  // namespace
