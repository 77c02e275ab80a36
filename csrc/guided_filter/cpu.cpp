// The guided filter family on a CPU.
#include "cpu_edges.h"
#include "cpu_filter.h"
#include "operators.h"
