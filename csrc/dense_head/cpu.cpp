// The dense head's kernels for a CPU.
#include "cpu_argmax.h"
#include "cpu_loss.h"
#include "cpu_loss_backward.h"
#include "operators.h"
