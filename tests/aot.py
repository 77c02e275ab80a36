"""Triton kernels compiled ahead of time, as the operators would launch them, with no GPU."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from helpers import OperatorCalls, differentiable, evaluate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vsegops import _register
from vsegops._spec import OperatorSpec
from vsegops.ops import families

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}
DTYPES = tuple(POINTERS)
POINTERS |= {
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@dataclass
class Launch:
    """One call of `_triton.launch`."""

    kernel: Any
    programs: int
    arguments: Sequence[Any]
    num_warps: int
    constants: dict[str, Any]

    def compile(self, architecture: int) -> Any:
        """Compile for the compute capability `architecture / 10`, specialised as Triton would."""
        signature, constants, attributes = {}, dict(self.constants), {}
        for i, (parameter, value) in enumerate(
            zip(self.kernel.params, self.arguments, strict=False)
        ):
            specialized = not parameter.do_not_specialize
            aligned = isinstance(value, Tensor)
            if isinstance(value, Tensor):
                kind = POINTERS[value.dtype]
            elif value is None or (specialized and isinstance(value, int) and value == 1):
                kind, constants[parameter.name] = "constexpr", value
            elif isinstance(value, float):
                kind = parameter.annotation_type or "fp32"
            else:
                kind = "i32" if value < 2**31 else "i64"
                aligned = specialized and value % 16 == 0
            signature[parameter.name] = kind
            if aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        signature |= dict.fromkeys(self.constants, "constexpr")
        return triton.compile(
            ASTSource(self.kernel, signature, constants, attributes),
            target=GPUTarget("cuda", architecture, 32),
            options={"num_warps": self.num_warps, "enable_fp_fusion": False},
        )


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the operators of every family launch from now on, in place of launching it."""
    launches: list[Launch] = []

    def record(
        kernel: Any, programs: int, *arguments: Any, num_warps: int, **constants: Any
    ) -> None:
        launches.append(Launch(kernel, programs, arguments, num_warps, constants))

    for family in families():
        importlib.import_module(f"vsegops.ops.{family}.triton")
    for name, module in list(sys.modules.items()):
        if name.startswith("vsegops.ops.") and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", record)
    return launches


def run_on_meta(spec: OperatorSpec, arguments: dict[str, Any]) -> Iterator[str]:
    """Run Triton's forward and backward of a call on tensors without memory: names, in turn."""
    with FakeTensorMode() as mode:
        fakes = {k: mode.from_tensor(x) if torch.is_tensor(x) else x for k, x in arguments.items()}
        with OperatorCalls() as operators:
            evaluate(spec.function, fakes, differentiable(spec, fakes))
    family = {operator.name: family for family, operator in _register._operators}
    for operator, given in operators.calls:
        name = operator.name().split("::")[1]
        module = importlib.import_module(f"vsegops.ops.{family[name]}.triton")
        getattr(module, name)(*(_without_memory(x) for x in given))
        yield name


def _without_memory(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def features(shape: Sequence[int], dtype: torch.dtype, layout: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=LAYOUTS[layout])


def tool(name: str) -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def resources(compiled: Any, tmp_path: Path) -> dict[str, int]:
    """Registers, stack and local memory, in the words of the binary."""
    if not tool("cuobjdump").exists():
        pytest.skip("this Triton comes without cuobjdump")
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [tool("cuobjdump"), "--dump-resource-usage", cubin]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}


def assert_fits(compiled: Any, tmp_path: Path, registers: int, stack: int = 0) -> None:
    """Nothing is spilled, and there are registers for several programs a multiprocessor.

    Args:
        stack: bytes a thread may use of it all the same.
    """
    used = resources(compiled, tmp_path)
    assert used["STACK"] <= stack, used
    assert used["LOCAL"] == 0, used
    assert used["REG"] <= registers, used


def accesses(compiled: Any, instruction: str) -> set[str]:
    """Widths of an access to global memory in the PTX: {"b32", "v4.b32", ...}."""
    found = re.findall(
        rf"\b{instruction}\.global[\w.]*?\.((?:v\d\.)?[bfu]\d+)\b", compiled.asm["ptx"]
    )
    return set(found)
