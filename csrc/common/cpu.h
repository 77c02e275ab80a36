// What CPU kernels share: vectors of the instruction set that this library is compiled for, half
// precision, transposition, scratch memory and parallel loops.
//
// setup.py compiles the CPU kernels once per instruction set, each into a library of its own, and
// the package loads the one that fits the processor. Everything here is therefore plain code for
// one instruction set, without dispatch.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "macros.h"

namespace vsegops {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// GCC's and Clang's vector extension: arithmetic by the usual operators.
template <typename F>
struct VectorOf {
  typedef F type __attribute__((vector_size(kVectorBytes)));
};
template <typename F>
using Vector = typename VectorOf<F>::type;

template <typename F>
constexpr int kLanes = kVectorBytes / sizeof(F);

// ---- Storage types: how an element is kept, and the type it is computed in. ----

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <typename T>
using compute_t = typename Compute<T>::type;

template <typename To, typename From>
VSEGOPS_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

VSEGOPS_HD float widen(float x) { return x; }
VSEGOPS_HD double widen(double x) { return x; }
VSEGOPS_HD float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
VSEGOPS_HD float widen(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  // Exponents are moved by a multiplication, which handles subnormal numbers as well.
  const float magnitude = bit_cast<float>(rest) * 0x1p112f;
  const bool special = (x.bits & 0x7c00) == 0x7c00;  // infinity or NaN
  return bit_cast<float>(sign | (special ? (0x7f800000u | rest) : bit_cast<uint32_t>(magnitude)));
#endif
}

// Rounds to nearest, ties to even.
VSEGOPS_HD void narrow(float x, float* out) { *out = x; }
VSEGOPS_HD void narrow(double x, double* out) { *out = x; }
VSEGOPS_HD void narrow(float x, BFloat16* out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  out->bits = uint16_t(x == x ? rounded : (bits >> 16) | 0x40);
}
VSEGOPS_HD void narrow(float x, Half* out) {
#if defined(__F16C__)
  out->bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t result;
  if (magnitude > 0x7f800000) {
    result = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    result = 0x7c00;  // rounds to infinity
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 1/2 moves the last bit of a half to the last bit of the float.
    result = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    result = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  }
  out->bits = uint16_t(sign | result);
#endif
}

// ---- Vectors of the compute type, loaded from and stored to any storage type. ----

VSEGOPS_HD Vector<float> load(const float* p) {
  Vector<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
VSEGOPS_HD Vector<double> load(const double* p) {
  Vector<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
VSEGOPS_HD void store(Vector<float> v, float* p) { std::memcpy(p, &v, sizeof(v)); }
VSEGOPS_HD void store(Vector<double> v, double* p) { std::memcpy(p, &v, sizeof(v)); }

VSEGOPS_HD Vector<float> load(const Half* p) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vector<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = widen(p[i]);
  return v;
#endif
}
VSEGOPS_HD void store(Vector<float> v, Half* p) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) narrow(v[i], p + i);
#endif
}

typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));

VSEGOPS_HD Vector<float> load(const BFloat16* p) {
  HalfBits bits;
  std::memcpy(&bits, p, sizeof(bits));
  return (Vector<float>)(__builtin_convertvector(bits, Vector<uint32_t>) << 16);
}
VSEGOPS_HD void store(Vector<float> v, BFloat16* p) {
  const Vector<uint32_t> bits = (Vector<uint32_t>)v;
  const Vector<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  const Vector<uint32_t> chosen = v == v ? rounded : ((bits >> 16) | 0x40);
  const HalfBits half = __builtin_convertvector(chosen, HalfBits);
  std::memcpy(p, &half, sizeof(half));
}

VSEGOPS_HD bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
}

// Outputs of this size leave the caches anyway.
constexpr int64_t kStreamBytes = 4 << 20;

// Past the caches; `p` has to be aligned to a vector.
template <typename F>
VSEGOPS_HD void stream(Vector<F> v, F* p) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
  store(v, p);
#endif
}
// Makes streamed stores visible to whoever reads them after the parallel loop.
inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

template <typename F>
VSEGOPS_HD Vector<F> first_lane(F x) {
  return Vector<F>{x};
}

// exp(x) = power + power * rest, x in [-87, 88]. With x = k log(2) + r: power is 2^k by its
// exponent bits, and rest, exp(r) - 1, is a Taylor polynomial of degree 7 for |r| < 0.35.
struct Exponential {
  Vector<float> power, rest;

  explicit VSEGOPS_HD Exponential(Vector<float> x) {
    constexpr float kLog2High = 0x1.62e4p-1f, kLog2Low = 0x1.7f7d1cp-20f;  // (k * high is exact)
    constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer
    x = x < -87.0f ? Vector<float>{} - 87.0f : x;
    x = x > 88.0f ? Vector<float>{} + 88.0f : x;
    const Vector<float> shifted = x * 1.44269504f + kRound;
    const Vector<float> k = shifted - kRound;
    const Vector<float> r = x - k * kLog2High - k * kLog2Low;
    Vector<float> sum = Vector<float>{} + 1.0f / 5040;
    for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f}) {
      sum = sum * r + coefficient;
    }
    rest = sum * r;
    power = (Vector<float>)(((Vector<uint32_t>)shifted + 127) << 23);
  }
};

// To 2 units in the last place for x in [-87, 88]; of the nearer end beyond; NaN for NaN.
VSEGOPS_HD Vector<float> exp(Vector<float> x) {
  const Exponential e(x);
  return e.power + e.power * e.rest;
}
// exp(x) - 1, as precise where x is small; beyond [-87, 88] as above.
VSEGOPS_HD Vector<float> expm1(Vector<float> x) {
  const Exponential e(x);
  return (e.power - 1) + e.power * e.rest;
}
// log(x) to 2 units in the last place for normal x; NaN for NaN. With x = 2^k (1 + f), sqrt(1/2) <
// 1 + f < sqrt(2): log(1 + f) = f - f^2 / 2 + f^3 p(f), where p is fitted to 6e-9 of the result.
VSEGOPS_HD Vector<float> log(Vector<float> x) {
  constexpr float kLog2High = 0x1.62e4p-1f, kLog2Low = 0x1.7f7d1cp-20f;  // (k * high is exact)
  const Vector<int32_t> exponent = ((Vector<int32_t>)x - 0x3f3504f3) >> 23;
  const Vector<float> f = (Vector<float>)((Vector<int32_t>)x - (exponent << 23)) - 1;
  const Vector<float> k = __builtin_convertvector(exponent, Vector<float>);
  Vector<float> p = Vector<float>{} - 0.07634824f;
  for (float coefficient : {0.12761649f, -0.13160083f, 0.14201739f, -0.16623367f, 0.20001228f,
                            -0.2500082f, 0.3333333f}) {
    p = p * f + coefficient;
  }
  const Vector<float> square = f * f;
  const Vector<float> rest = f * square * p + (k * kLog2Low - 0.5f * square);
  const Vector<float> result = k * kLog2High + (f + rest);
  return x == x ? result : x;
}

VSEGOPS_HD Vector<double> exp(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}
VSEGOPS_HD Vector<double> expm1(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::expm1(x[i]);
  return x;
}
VSEGOPS_HD Vector<double> log(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::log(x[i]);
  return x;
}

// ---- Transposition ----

template <typename F, int... I>
VSEGOPS_HD void interleave(Vector<F> a, Vector<F> b, Vector<F>* low, Vector<F>* high,
                           std::integer_sequence<int, I...>) {
  constexpr int n = kLanes<F>;
  *low = __builtin_shufflevector(a, b, ((I & 1) * n + I / 2)...);
  *high = __builtin_shufflevector(a, b, ((I & 1) * n + n / 2 + I / 2)...);
}

template <typename F>
VSEGOPS_HD void store_interleaved(Vector<F> a, Vector<F> b, F* p) {
  Vector<F> low, high;
  interleave<F>(a, b, &low, &high, std::make_integer_sequence<int, kLanes<F>>());
  store(low, p);
  store(high, p + kLanes<F>);
}

// The elements of two vectors at even, and at odd, places.
template <typename F, int... I>
VSEGOPS_HD Vector<F> even(Vector<F> a, Vector<F> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, 2 * I...);
}
template <typename F, int... I>
VSEGOPS_HD Vector<F> odd(Vector<F> a, Vector<F> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, 2 * I + 1 ...);
}

// Transposes kLanes x kLanes elements held in kLanes vectors: log2(kLanes) rounds of interleaving
// the first half of the rows with the second.
template <typename F>
VSEGOPS_HD void transpose(Vector<F>* rows) {
  constexpr int n = kLanes<F>;
  Vector<F> mixed[n];
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      interleave<F>(rows[i], rows[i + n / 2], mixed + 2 * i, mixed + 2 * i + 1,
                    std::make_integer_sequence<int, n>());
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = mixed[i];
  }
}

// Makes a constant of a condition: calls `then` with std::true_type or std::false_type.
template <typename Then>
void lift(bool condition, const Then& then) {
  condition ? then(std::true_type()) : then(std::false_type());
}

// ---- Scratch memory: one buffer per thread and use, kept from call to call. ----

template <typename T, typename Tag>
T* thread_scratch(size_t size) {
  thread_local std::vector<T> buffer;
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace vsegops
