// The attention kernels for a CPU.
#include "../common/cpu.h"

#include "attention.h"

namespace vsegops::attention {
template <typename T>
void pool(const Pool<T>&, const Context&) {}
template <typename T>
void pool_backward(const PoolBackward<T>&, const Context&) {}
template <typename T>
void attend(const Attention<T>&, const Context&) {}
template <typename T>
void attend_backward(const AttentionBackward<T>&, const Context&) {}
template <typename T>
void criss_cross(const CrissCross<T>&, const Context&) {}
template <typename T>
void criss_cross_backward(const CrissCrossBackward<T>&, const Context&) {}
}  // namespace vsegops::attention

#include "operators.h"
