// The dual warp family on a CPU.
#include "cpu_backward.h"
#include "cpu_forward.h"
#include "cpu_pool.h"
#include "operators.h"
