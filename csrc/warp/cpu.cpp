// The warp family on a CPU: see ../common/cpu_taps.h for what both directions share.
#include "cpu_backward.h"
#include "cpu_forward.h"
#include "operators.h"
