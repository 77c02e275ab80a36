#!/usr/bin/env python3
"""What an installed vsegops has to do, in a few seconds; run it from outside the repository.

python smoke_test.py                    with compiled CPU kernels
python smoke_test.py --without-kernels  after an install with VSEGOPS_NATIVE=0
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

import vsegops

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--without-kernels", action="store_true")
parser.add_argument("--anywhere", action="store_true", help="also from a checkout")
options = parser.parse_args()

package = Path(vsegops.__file__).parent
if not options.anywhere:
    assert package.parent.name == "site-packages", f"this is not an installed package: {package}"
assert (package / "py.typed").exists(), "py.typed is missing"

status = vsegops.backends()
assert status["reference"].available
if options.without_kernels:
    assert not list(package.rglob("*.so")), "there are compiled files"
    assert "VSEGOPS_NATIVE=0" in status["cpu"].reason, status["cpu"]
else:
    assert status["cpu"].available, status["cpu"].reason

for layout in (torch.contiguous_format, torch.channels_last):
    torch.manual_seed(0)
    x = torch.randn(2, 19, 33, 40).to(memory_format=layout).requires_grad_()
    flow = torch.randn(2, 2, 33, 40).requires_grad_()
    correction = torch.randn(2, 19, 33, 40).to(memory_format=layout)
    attention = torch.rand(2, 1, 33, 40)
    found = {}
    for backend in ("reference",) if options.without_kernels else ("reference", "cpu"):
        with vsegops.use_backend(backend):
            y = vsegops.warp_correct(x, flow, correction, attention)
        found[backend] = (y, *torch.autograd.grad(y.square().sum(), (x, flow)))
    for results in found.values():
        for result, expected in zip(results, found["reference"], strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)

from vsegops.models import video  # noqa: E402

assert video.CodecReader.__doc__
if options.without_kernels:
    try:
        video.rasterize(None, 16, 16)
    except ImportError as error:
        assert "VSEGOPS_NATIVE" in str(error)
    else:
        raise AssertionError("there is a codec module")
else:
    flow, mask = video.rasterize(None, 16, 16)
    assert flow.shape == (2, 16, 16) and not mask.any()

report = subprocess.run([sys.executable, "-m", "vsegops"], capture_output=True, text=True)
assert report.returncode == 0, report.stderr
assert vsegops.__version__ in report.stdout
print(report.stdout)
print(f"{package}: works, with torch {torch.__version__}")
