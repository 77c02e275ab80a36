// The dense head's kernels for a CPU.
#include "../common/cpu.h"

#include "dense_head.h"

namespace vsegops::dense_head {
template <typename T, typename F>
void argmax(const Argmax<T, F>&, const Context&) {}
template <typename T, typename F>
void loss(const LossForward<T, F>&, const Context&) {}
template <typename T, typename F>
void loss_backward(const LossBackward<T, F>&, const Context&) {}
}  // namespace vsegops::dense_head

#include "operators.h"
