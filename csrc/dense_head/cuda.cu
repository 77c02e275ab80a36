// The dense head's kernels for a GPU. Each serves both layouts: it reads single elements, by the
// strides.
#include "cuda_argmax.h"
#include "cuda_loss.h"
#include "cuda_loss_backward.h"
#include "operators.h"  // registers them
