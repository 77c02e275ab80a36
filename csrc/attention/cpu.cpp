// The attention family on a CPU.
#include "cpu_attend.h"
#include "cpu_criss_cross.h"
#include "cpu_pool.h"
#include "operators.h"
