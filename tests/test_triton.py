"""What is particular to the Triton backend and can be checked without a GPU.

Every kernel is compiled ahead of time, just as the operators would launch it, and its machine code
is inspected. That the kernels compute the right thing is `test_contract.py --backend triton`, which
needs TRITON_INTERPRET=1 where there is no GPU; a small part of it runs from here.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("under TRITON_INTERPRET nothing is compiled", allow_module_level=True)

from aot import (  # noqa: E402
    DTYPES,
    LAYOUTS,
    Launch,
    accesses,
    assert_fits,
    features,
    recorded,
    run_on_meta,
)

from vsegops._determinism import nondeterministic  # noqa: E402
from vsegops._spec import Maker, OperatorSpec  # noqa: E402

warp: Any = importlib.import_module("vsegops.ops.warp.triton")
dense_head: Any = importlib.import_module("vsegops.ops.dense_head.triton")
dual_warp: Any = importlib.import_module("vsegops.ops.dual_warp.triton")


# --- every family -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, layout, architecture, most",
    [
        (torch.float32, "nchw", 90, 2),
        (torch.float32, "nhwc", 90, 1),
        (torch.float16, "nchw", 80, 1),
        (torch.bfloat16, "nhwc", 100, 1),
        (torch.float64, "nchw", 90, 1),
    ],
)
def test_measured_calls_compile(
    spec: OperatorSpec, monkeypatch, tmp_path: Path, dtype, layout, architecture, most
):
    """What the benchmarks call, forward and backward; of rarer formats not every shape."""
    launches = recorded(monkeypatch)
    for case in spec.benchmarks[:most]:
        arguments = case.make(Maker(dtype=dtype, channels_last=layout == "nhwc"))
        for operator in run_on_meta(spec, arguments):
            assert launches, f"{case.name}: {operator} launches nothing"
            while launches:
                # (a few words are given up where another program fits the registers for it)
                compiled = launches.pop().compile(architecture)
                assert_fits(compiled, tmp_path, registers=255, stack=32)


# --- warp ---------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Launch]:
    """Calls an operator on tensors without memory and tells what it would have launched."""
    launches = recorded(monkeypatch)

    def call(operator: Callable[..., Any], *arguments: Any) -> Launch:
        launches.clear()
        operator(*arguments)
        (launch,) = launches
        return launch

    return call


def options(
    align_corners: bool = True, mode: str = "bilinear", padding_mode: str = "zeros"
) -> tuple[Any, ...]:
    return 1.0, 1.0, False, align_corners, mode, padding_mode


def arguments(
    dtype: torch.dtype,
    layout: str,
    *,
    backward: bool,
    channels: int = 64,
    source: tuple[int, int] = (128, 256),
    size: tuple[int, int] = (128, 256),
    corrected: bool = True,
    flow_dtype: torch.dtype | None = None,
    wanted: int = 15,
    **chosen: Any,
) -> tuple[Any, ...]:
    """An operator and its arguments."""
    input = features((1, channels, *source), dtype, layout)
    flow = features((1, 2, *size), flow_dtype or dtype, "nchw")
    grad = features((1, channels, *size), dtype, layout)
    tensors: tuple[Any, ...] = (grad, input, flow) if backward else (input, flow)
    if corrected:
        tensors += grad, features((1, 1, *size), dtype, layout)
    operator = {
        (False, False): warp.flow_warp,
        (False, True): warp.flow_warp_backward,
        (True, False): warp.warp_correct,
        (True, True): warp.warp_correct_backward,
    }[corrected, backward]
    return operator, *tensors, *options(**chosen), *([wanted] if backward else [])


BITS = {torch.float64: 64, torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_forward_compiles(launched, tmp_path, architecture, dtype, layout):
    launch = launched(*arguments(dtype, layout, backward=False))
    compiled = launch.compile(architecture)
    assert_fits(compiled, tmp_path, registers=168 if dtype == torch.float64 else 128)
    bits = BITS[dtype]
    if layout == "nhwc":  # 16 bytes of channels at once
        width = {64: "v2.b64"}.get(bits, "v4.b32")
    else:  # neighbouring pixels in neighbouring lanes
        width = f"b{bits}"
    assert width in accesses(compiled, "ld")
    assert accesses(compiled, "st") == {width}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_backward_compiles(launched, tmp_path, architecture, dtype, layout):
    launch = launched(*arguments(dtype, layout, backward=True))
    compiled = launch.compile(architecture)
    assert_fits(compiled, tmp_path, registers=168)
    added = accesses(compiled, "red") | accesses(compiled, "atom")
    if dtype == torch.float64:
        assert added == {"f64"}
    elif layout == "nhwc" and architecture >= 90:
        assert added == {"v4.f32"}
    else:
        assert added == {"f32"}


#: Everything that changes code, each beside the defaults.
VARIANTS: dict[str, dict[str, Any]] = {
    "no correction": {"corrected": False},
    "nearest": {"mode": "nearest"},
    "border": {"padding_mode": "border"},
    "resize": {"source": (64, 128)},
    "resize, corners apart": {"source": (64, 128), "align_corners": False},
    "odd channels": {"channels": 19},
    "one channel": {"channels": 1},
    "image": {"channels": 3, "source": (1024, 2048), "size": (1024, 2048)},
    "few pixels": {"source": (30, 40), "size": (30, 40)},
    "beyond 2^31": {"channels": 8, "source": (2**14, 2**15), "size": (2**14, 2**15)},
    "float32 flow": {"flow_dtype": torch.float32},
    "wanted: input": {"wanted": 1},
    "wanted: flow": {"wanted": 2},
    "wanted: correction": {"wanted": 4},
    "wanted: attention": {"wanted": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_variant_compiles(launched, tmp_path, backward, layout, variant):
    chosen = VARIANTS[variant]
    if "wanted" in chosen and not backward:
        pytest.skip("a forward computes all of its output")
    dtype = torch.float16 if "flow_dtype" in chosen else torch.float32
    launch = launched(*arguments(dtype, layout, backward=backward, **chosen))
    assert_fits(launch.compile(90), tmp_path, registers=168)


def test_nearest_has_no_gradient_of_the_flow_to_launch_for(launched):
    asked = arguments(
        torch.float32, "nchw", backward=True, corrected=False, mode="nearest", wanted=2
    )
    with pytest.raises(ValueError, match="not enough values"):
        launched(*asked)


def test_products_are_not_contracted(launched):
    """A product that is fused into the subtraction after it has no rounding error left to find."""
    launch = launched(*arguments(torch.float32, "nchw", backward=False, corrected=False))
    assert {p.name for p in launch.kernel.params if p.annotation_type == "fp64"} == {
        "scale_x",
        "scale_y",
    }, "a scale that arrives as float32 has lost its lower half"
    ptx = launch.compile(90).asm["ptx"]
    assert "mul.rn.f32" in ptx, "multiplications that must round keep their rounding"
    assert "mul.f32" not in ptx


def test_index_arithmetic_is_wide_only_where_it_has_to_be(launched):
    small = launched(*arguments(torch.float32, "nchw", backward=False))
    assert small.constants["INDEX"] == triton.language.int32
    large = launched(*arguments(torch.float32, "nchw", backward=False, **VARIANTS["beyond 2^31"]))
    assert large.constants["INDEX"] == triton.language.int64
    # Small tensors, but a flow whose strides skip far.
    flow = torch.empty(1, device="meta").as_strided((1, 2, 128, 256), (1, 2**31, 256, 1))
    input = features((1, 64, 128, 256), torch.float32, "nchw")
    strided = launched(warp.flow_warp, input, flow, *options())
    assert strided.constants["INDEX"] == triton.language.int64


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_tiles_fill_a_gpu(launched, backward, dtype, layout):
    """90 x 120 pixels, the smallest map of the papers, still occupy every multiprocessor twice."""
    size = {"source": (90, 120), "size": (90, 120)}
    launch = launched(*arguments(dtype, layout, backward=backward, **size))
    assert launch.programs >= 2 * 132
    tile = launch.constants["BLOCK_P"] * launch.constants["BLOCK_C"]
    assert tile >= 32 * launch.num_warps, "no thread is idle"


# --- dual warp ----------------------------------------------------------------------------------


def dual_arguments(
    dtype: torch.dtype,
    layout: str,
    *,
    wanted: int = 0,
    channels: int = 128,
    source: tuple[int, int] = (16, 32),
    size: tuple[int, int] = (128, 256),
    padding_mode: str = "zeros",
) -> tuple[Any, ...]:
    """An operator and its arguments: the backward where gradients are wanted."""
    fine = features((1, channels, *size), dtype, layout)
    flows = features((1, 4, *size), dtype, layout).chunk(2, 1)
    gate = features((1, 1, *size), dtype, layout)
    given = (features((1, channels, *source), dtype, layout), fine, *flows, gate)
    options = (1.0, 1.0, True, 1.0, 1.0, True, True, padding_mode)
    if wanted:
        return dual_warp.gated_dual_warp_backward, fine, *given, *options, wanted
    return dual_warp.gated_dual_warp, *given, *options


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dual_warp_accesses(launched, tmp_path, dtype, layout):
    """Eight taps in flight and nothing spilled; channels by 16 bytes at once."""
    compiled = launched(*dual_arguments(dtype, layout)).compile(90)
    assert_fits(compiled, tmp_path, registers=168 if dtype == torch.float64 else 128)
    width = {64: "v2.b64"}.get(BITS[dtype], "v4.b32") if layout == "nhwc" else f"b{BITS[dtype]}"
    assert width in accesses(compiled, "ld")
    assert accesses(compiled, "st") == {width}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "variant",
    [
        *({"wanted": 1 << bit} for bit in range(5)),
        {"wanted": 31, "padding_mode": "border", "channels": 19},
        {"wanted": 31, "source": (128, 256)},
        {"wanted": 0, "channels": 19, "source": (9, 300)},
        {"wanted": 31, "channels": 8, "source": (2, 2), "size": (2**14, 2**15)},
    ],
    ids=str,
)
def test_dual_warp_variant_compiles(launched, tmp_path, layout, variant):
    launch = launched(*dual_arguments(torch.float32, layout, **variant))
    assert_fits(launch.compile(90), tmp_path, registers=168)
    wide = variant.get("size", (1, 1)) == (2**14, 2**15)
    assert launch.constants["INDEX"] == (triton.language.int64 if wide else triton.language.int32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wanted", [None, 0, 1, 2, 3])
def test_channel_pool_accesses(launched, tmp_path, wanted, layout):
    """Channels by 16 bytes at once where they are neighbours. (0: forward, with places.)"""
    given = [features((1, c, 128, 256), torch.float32, layout) for c in (64, 128)]
    name, arguments = "channel_pool" if wanted is None else "channel_pool_with_places", given
    if wanted:
        grad = features((1, 4, 128, 256), torch.float32, layout)
        places = torch.empty((1, 2, 128, 256), dtype=torch.int32, device="meta")
        name, arguments = "channel_pool_backward", [grad, places, 64, 128, layout == "nhwc", wanted]
    compiled = launched(getattr(dual_warp, name), *arguments).compile(90)
    assert_fits(compiled, tmp_path, registers=64)
    direction = "st" if wanted else "ld"
    assert ("v4.b32" if layout == "nhwc" else "b32") in accesses(compiled, direction)


# --- dense head ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "variant",
    [
        {"classes": 1},
        {"classes": 300, "weighted": True},
        {"dtype": torch.float16, "target": torch.uint8},
        {"dtype": torch.float64, "smoothing": 0.1, "weighted": True},
        {"smoothing": 0.1, "each": True, "align_corners": True},
        {"size": (2**15, 2**16), "source": (2**12, 2**13)},
    ],
    ids=str,
)
def test_dense_head_variant_compiles(monkeypatch, tmp_path, layout, variant):
    """Labels, loss and gradient: nothing is spilled, and indices are wide where they have to be."""
    dtype = variant.get("dtype", torch.float32)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    size = variant.get("size", (128, 256))
    shape = (2, variant.get("classes", 19), *variant.get("source", (16, 32)))
    logits = features(shape, dtype, layout)
    target = torch.empty((2, *size), dtype=variant.get("target", torch.int64), device="meta")
    weight = torch.empty(logits.shape[1], dtype=compute, device="meta")
    align_corners, each = variant.get("align_corners", False), variant.get("each", False)
    given = (
        *(logits, target, weight if variant.get("weighted") else None, 255),
        *(align_corners, variant.get("smoothing", 0.0)),
    )
    grad = torch.empty(target.shape if each else (), dtype=compute, device="meta")
    launches = recorded(monkeypatch)
    dense_head.upsample_argmax(logits, *size, align_corners, each)
    dense_head.upsample_cross_entropy(*given, not each)
    dense_head.upsample_cross_entropy_backward(grad, *given)
    assert len(launches) == 5
    wide = size[0] * size[1] >= 2**31  # addresses take twice the registers
    for launch in launches:
        assert_fits(launch.compile(90), tmp_path, registers=224 if wide else 168)
        index = triton.language.int64 if wide else triton.language.int32
        assert launch.constants["INDEX"] == index


# --- determinism --------------------------------------------------------------------------------


def test_gradients_that_vary_raise_where_determinism_is_asked_for(launched):
    torch.use_deterministic_algorithms(True)
    for corrected, name in ((False, "flow_warp"), (True, "warp_correct")):
        asked = arguments(torch.float32, "nchw", backward=True, corrected=corrected)
        with pytest.raises(RuntimeError, match=f"vsegops_triton::{name}_backward does not have"):
            launched(*asked)
        launched(*asked[:-1], 2)  # the flow's gradient is a sum in a fixed order
    for bit in (1, 2):
        with pytest.raises(RuntimeError, match="vsegops_triton::gated_dual_warp_backward does"):
            launched(*dual_arguments(torch.float32, "nchw", wanted=bit))
    launched(*dual_arguments(torch.float32, "nchw", wanted=28))


def test_determinism_may_be_only_a_warning():
    nondeterministic("vsegops::nothing")  # nobody asked
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match="vsegops::nothing does not have a deterministic"):
        nondeterministic("vsegops::nothing")


# --- in the interpreter -------------------------------------------------------------------------


def interpreted(code: str) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_interpreter_agrees_with_the_truth():
    """One case of each operator, so that a plain run of the tests has executed the kernels."""
    interpreted(
        """
import torch, vsegops
from vsegops._spec import Maker, specs
for channels_last in (False, True):
    for operator in specs():
        arguments = operator.cases[0].make(Maker(channels_last=channels_last))
        with vsegops.use_backend("triton"):
            out = operator.function(**arguments)
        truth = operator.truth(arguments)
        error = (out - truth).abs().max() / truth.abs().max()
        assert error <= operator.float32_error[0], (operator.name, channels_last, error)
"""
    )


def test_importing_the_package_does_not_import_triton():
    code = "import sys, vsegops; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
