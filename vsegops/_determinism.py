"""What `torch.use_deterministic_algorithms(True)` means for kernels that add in any order."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def runs_cuda_kernels(namespace: str, tensor: Tensor) -> bool:
    """Whether a namespace's operators run our CUDA kernels on `tensor`: in the tests also a CPU."""
    return tensor.is_cuda if namespace == "vsegops" else namespace == "vsegops_host"


def nondeterministic(operator: str) -> None:
    """Raise, or warn where the user chose that, because `operator` would add in any order.

    Args:
        operator: the qualified name, say `"vsegops_triton::flow_warp_backward"`.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"{operator} does not have a deterministic implementation, but you set"
        " 'torch.use_deterministic_algorithms(True)'. With 'warn_only=True' it warns and goes on."
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
