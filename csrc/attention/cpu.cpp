// The attention family on a CPU.
#include "cpu_attend.h"
namespace vsegops::attention {
template <typename T>
void pool(const Pool<T>&, const Context&) {}
template <typename T>
void pool_backward(const PoolBackward<T>&, const Context&) {}
template <typename T>
void criss_cross(const CrissCross<T>&, const Context&) {}
template <typename T>
void criss_cross_backward(const CrissCrossBackward<T>&, const Context&) {}
}
#include "operators.h"
