"""The operator families: one folder each, discovered, never listed.

A family's folder holds `op` (schemas, fakes, autograd, autocast), `reference` (the executable
definition), `triton` (kernels) and `spec` (sample inputs, tolerances, costs). Its compiled kernels
are in the folder of the same name under `csrc/`.
"""

from __future__ import annotations

import pkgutil


def families() -> list[str]:
    """Names of the operator families, that is of the packages in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
