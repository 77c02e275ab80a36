"""SFNet's flow alignment (FAM) and SFNet-Lite's gated dual one (GD-FAM)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks
from ..ops.dual_warp import channel_pool, gated_dual_warp
from ..ops.warp import MODES, flow_warp, warp_correct
from ._operators import OperatorModule

_KERNEL_SIZES = (1, 3, 5, 7)
_GATES = ("pool", "conv")


class _Align(OperatorModule):
    """What both share: the two maps, reduced and at one size, and the flow that they predict."""

    def __init__(self, channels: int, flows: int, kernel_size: int, mode: str) -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 2:
            raise _checks.error("channels", "a whole number from 2 on", channels)
        if isinstance(kernel_size, bool) or kernel_size not in _KERNEL_SIZES:
            raise _checks.error("kernel_size", "1, 3, 5 or 7", kernel_size)
        _checks.check_option("mode", mode, MODES)
        self.channels, self.kernel_size, self.mode = channels, kernel_size, mode
        reduced = channels // 2
        self.down_h = nn.Conv2d(channels, reduced, 1, bias=False)
        self.down_l = nn.Conv2d(channels, reduced, 1, bias=False)
        self.flow_make = _conv2d(2 * reduced, 2 * flows, kernel_size)

    def _reduce(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse map and both together, reduced, at the fine one's size."""
        _checks.check_tensor("low", low, ("N", self.channels, "H", "W"))
        _checks.check_tensor("high", high, (low.shape[0], self.channels, "h", "w"), like=low)
        corners: Any = True if self.mode == "bilinear" else None
        coarse = F.interpolate(
            self.down_h(high), low.shape[2:], mode=self.mode, align_corners=corners
        )
        return coarse, torch.cat((coarse, self.down_l(low)), 1)

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, mode={self.mode!r}"


class FlowAlign(_Align):
    """Warp a coarse feature map to where a fine one has the same things (SFNet's FAM).

    Both maps predict a semantic flow, along which the coarse one is sampled: it comes out at the
    fine one's size, its boundaries where the fine one sees them. It stands where a feature pyramid
    would resize the coarse map. `docs/flow-align.md` puts it into one, and spells out the
    conventions of the flow: those of `vsegops.flow_warp` with `scale="semantic"`.

    Args:
        channels: C, of both maps.
        kernel_size: of the convolution that predicts the flow: 1, 3 (as published), 5 or 7.
        mode: how the coarse map is resized for that prediction (not how it is warped): `"bilinear"`
            (as published) or `"nearest"`.
        align_corners: False for a checkpoint from before July 2022 that was trained with the warp
            that was published then (see `docs/flow-align.md`).

    Forward:
        low: fine features `[N, C, H, W]`.
        high: coarse features `[N, C, h, w]`.
        add_low: return the sum with `low`, in the same pass: what SFNet does next. The warped
            features are then never written to memory.

        Returns `[N, C, H, W]`: `high`, warped, or that plus `low`.

    Example:
        >>> import torch, vsegops
        >>> align = vsegops.nn.FlowAlign(64)
        >>> low, high = torch.randn(1, 64, 32, 64), torch.randn(1, 64, 16, 32)
        >>> align(low, high, add_low=True).shape
        torch.Size([1, 64, 32, 64])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        mode: str = "bilinear",
        *,
        align_corners: bool = True,
    ) -> None:
        super().__init__(channels, 1, kernel_size, mode)
        _checks.check_bool("align_corners", align_corners)
        self.align_corners = align_corners

    def forward(self, low: Tensor, high: Tensor, *, add_low: bool = False) -> Tensor:
        _, both = self._reduce(low, high)
        flow = self.flow_make(both)
        options: Any = {"scale": "semantic", "padding_mode": "zeros"}
        if not self.align_corners:
            flow, options["align_corners"] = _stretched(flow), False
        if add_low:
            return self.run(warp_correct, high, flow, low, **options)
        return self.run(flow_warp, high, flow, **options)


class GatedDualFlowAlign(_Align):
    """Warp a coarse and a fine feature map to meet, and blend them by a gate (SFNet-Lite's GD-FAM).

    As `FlowAlign`, but both maps are sampled along a flow of their own, and the sum of the two is
    weighted pixel by pixel, in one pass (`vsegops.gated_dual_warp`): one such module leads from the
    coarsest map to the finest. The gate is the share of the coarse map.

    Args:
        channels: C, of both maps.
        gate: what it is computed from: `"pool"`, mean and maximum over the channels of both maps
            (the released networks), or `"conv"`, the reduced maps themselves. A convolution of
            3 x 3, as published, and the logistic function follow.
        kernel_size: of the convolution that predicts the flows: 1, 3 (as published), 5 or 7.
        mode: how the coarse map is resized for these predictions: `"bilinear"` (as published) or
            `"nearest"`.

    Forward:
        low: fine features `[N, C, H, W]`.
        high: coarse features `[N, C, h, w]`.

        Returns `[N, C, H, W]`, both blended.

    Example:
        >>> import torch, vsegops
        >>> align = vsegops.nn.GatedDualFlowAlign(128)
        >>> low, high = torch.randn(1, 128, 32, 64), torch.randn(1, 128, 4, 8)
        >>> align(low, high).shape
        torch.Size([1, 128, 32, 64])
    """

    def __init__(
        self, channels: int, gate: str = "pool", kernel_size: int = 3, mode: str = "bilinear"
    ) -> None:
        super().__init__(channels, 2, kernel_size, mode)
        _checks.check_option("gate", gate, _GATES)
        self.gate = gate
        sources = 4 if gate == "pool" else 2 * (channels // 2)
        self.flow_gate = nn.Sequential(_conv2d(sources, 1, 3), nn.Sigmoid())

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        coarse, both = self._reduce(low, high)
        high_flow, low_flow = self.flow_make(both).chunk(2, 1)
        # Of the fine map all channels are pooled, of the coarse one the reduced: as published.
        pooled = self.run(channel_pool, coarse, low) if self.gate == "pool" else both
        return self.run(gated_dual_warp, high, low, high_flow, low_flow, self.flow_gate(pooled))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gate={self.gate!r}"


def _stretched(flow: Tensor) -> Tensor:
    """The flow, moved by -1 at the left and top border to 1 at the right and bottom.

    With it the warp of `align_corners=False` samples at x w / (W - 1) - 1/2, as SFNet was published
    first: a grid for the centres of the corner pixels, taken for one of the image's corners.
    """
    height, width = flow.shape[2:]
    options: Any = {
        "dtype": torch.promote_types(flow.dtype, torch.float32),
        "device": flow.device,
    }
    y = torch.linspace(-1, 1, height, **options)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, **options).expand(height, width)
    return flow + torch.stack((x, y))


def _conv2d(channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """A convolution that keeps the size, without bias."""
    return nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
