"""What `torch.use_deterministic_algorithms(True)` means for kernels that add in any order."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


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


def atomic_on_cuda(ops: Any, operator: str, grad: Tensor) -> None:
    """Say that the compiled CUDA kernel of `operator` sums by atomic additions, in any order.

    Args:
        ops: the namespace of the forward; only the compiled ones are meant, that of the tests which
            run the CUDA sources on a CPU among them.
        operator: the backward's name.
    """
    if ops.name == "vsegops_host" or (grad.is_cuda and ops.name == "vsegops"):
        nondeterministic(f"vsegops::{operator}")
