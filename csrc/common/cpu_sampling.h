// Positions of kLanes pixels at a time: what sampling.h needs to be given vectors.
#pragma once

#include "cpu.h"
#include "sampling.h"

namespace vsegops {

typedef int32_t FewIndices __attribute__((vector_size(kVectorBytes / 2)));

// Indices are integers as wide as the elements, so that conditions on either select among both.
template <>
struct Arithmetic<Vector<float>> {
  using V = Vector<float>;
  using Index = Vector<int32_t>;

  struct Floor {
    Index index;
    V value;
  };
  static VSEGOPS_HD Floor floor(V x) {
    const Index toward_zero = __builtin_convertvector(x, Index);
    const V value = __builtin_convertvector(toward_zero, V);
    return {toward_zero + (value > x), value > x ? value - 1 : value};  // (true is -1)
  }

  static VSEGOPS_HD V multiply_subtract(V a, V b, V c) {
#if defined(__AVX512F__)
    return (V)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (V)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < kLanes<float>; ++i) {
      a[i] = Arithmetic<float>::multiply_subtract(a[i], b[i], c[i]);
    }
    return a;
#endif
  }
};

template <>
struct Arithmetic<Vector<double>> {
  using V = Vector<double>;
  using Index = Vector<int64_t>;

  struct Floor {
    Index index;
    V value;
  };
  static VSEGOPS_HD Floor floor(V x) {
    // (By way of 32 bits: few processors convert doubles to more.)
    const FewIndices toward_zero = __builtin_convertvector(x, FewIndices);
    const V value = __builtin_convertvector(toward_zero, V);
    return {__builtin_convertvector(toward_zero, Index) + (value > x),
            value > x ? value - 1 : value};
  }

  static VSEGOPS_HD V multiply_subtract(V a, V b, V c) {
#if defined(__AVX512F__)
    return (V)_mm512_fmsub_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (V)_mm256_fmsub_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b - c;  // (rounded twice, as one double is)
#endif
  }
};

VSEGOPS_HD void store_index(Vector<int32_t> i, int32_t* out) { std::memcpy(out, &i, sizeof(i)); }
VSEGOPS_HD void store_index(Vector<int64_t> i, int32_t* out) {
  const FewIndices few = __builtin_convertvector(i, FewIndices);
  std::memcpy(out, &few, sizeof(few));
}
template <typename F>
VSEGOPS_HD index_t<Vector<F>> load_index(const int32_t* p) {
  if constexpr (sizeof(F) == sizeof(int32_t)) {
    Vector<int32_t> i;
    std::memcpy(&i, p, sizeof(i));
    return i;
  } else {
    FewIndices few;
    std::memcpy(&few, p, sizeof(few));
    return __builtin_convertvector(few, Vector<int64_t>);
  }
}

}  // namespace vsegops
