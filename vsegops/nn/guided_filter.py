"""GSVNet's guided spatially-varying convolution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks
from ..ops.guided_filter import DELAYS_3X3, DELAYS_5X5, Offset, guided_filter, label_edges
from ._operators import OperatorModule

_VARIANTS = ("published", "paper")
_NORMALIZATIONS = ("sum", "softmax")

#: The delays in a window, by its width.
_DELAYS: Mapping[int, tuple[Offset, ...]] = {3: DELAYS_3X3, 5: DELAYS_5X5}


class GuidedSpatiallyVaryingConv(OperatorModule):
    """Refine propagated logits by shifts of themselves and by the current frame (GSVNet).

    A small network looks at the current frame and makes logits of its own (intra). Another one
    looks at these and at the edges of the propagated label map, and says for each pixel how much of
    each candidate to take: of the shifted copies, and of intra. See `vsegops.guided_filter`; with a
    flow the logits are warped on the way, and the warped ones are never written to memory.

    There are two readings of the layer. Both have 3 x 3 delays:

    - `"published"`, the published code, whose checkpoints load: a copy, eight shifts, an empty
      ninth that only takes weight away, and intra make 11 guide channels; an edge is 1 wherever the
      Laplacian of the labels is not 0.
    - `"paper"`: nine delays and intra make 10; the edge map is the logistic function of it.

    A window of 5 x 5 has 17 delays (see `vsegops.ops.guided_filter.DELAYS_5X5`) in place of nine.

    The delays are a parameter, `ideal_dk.filter_copy_s` `[9, 1, 1, 3, 3]`, which does not ask for a
    gradient: one-hot kernels are shifts. With other kernels (`requires_grad_()` trains them, a
    checkpoint may hold trained ones) each candidate is a convolution, as published, at the cost of
    a small product more. Write to them in place, outside of compiled code, or load them.

    Args:
        num_classes: C, of the logits.
        variant: `"published"` or `"paper"`.
        normalize: how guides become weights: `"sum"` (as published; the guide ends in a ReLU) or
            `"softmax"` (and it does not).
        intra: False: the current frame is not looked at (the paper's table 4). There is no network
            for it then, and the guide knows the edges alone.
        window: 3, or 5 (the supplement's table A6).
        scale: pixels per unit of flow, as for `vsegops.flow_warp`. GSVNet's flow network is trained
            for 0.25.

    Forward:
        logits: `[N, C, H, W]` of the previous frame (or of this one, warped already).
        image: `[N, 3, H, W]`, the current frame at the logits' size.
        flow: `[N, 2, H, W]`, backward flow, or None where the logits are warped already.

        Returns `[N, C, H, W]`.

    Example:
        >>> import torch, vsegops
        >>> layer = vsegops.nn.GuidedSpatiallyVaryingConv(num_classes=4).eval()
        >>> logits, image = torch.randn(1, 4, 16, 24), torch.randn(1, 3, 16, 24)
        >>> flow = torch.zeros(1, 2, 16, 24)
        >>> layer(logits, image, flow).shape
        torch.Size([1, 4, 16, 24])
    """

    def __init__(
        self,
        num_classes: int = 19,
        variant: str = "published",
        *,
        normalize: str = "sum",
        intra: bool = True,
        window: int = 3,
        scale: float | Sequence[float] | str = 1.0,
    ) -> None:
        super().__init__()
        _checks.check_option("variant", variant, _VARIANTS)
        _checks.check_option("normalize", normalize, _NORMALIZATIONS)
        _checks.check_bool("intra", intra)
        if window not in _DELAYS:
            raise _checks.error("window", f"one of {', '.join(map(str, _DELAYS))}", window)
        _checks.flow_scale(scale)
        self.num_classes, self.variant = num_classes, variant
        self.normalize, self.scale = normalize, scale
        published = variant == "published"
        #: Candidates that come before the delays.
        self._copies: tuple[Offset, ...] = ((0, 0),) if published else ()
        delays = _DELAYS[window]
        if published:  # kept beside the copy: the shifts, and one that is empty
            delays = (*(delay for delay in delays if delay != (0, 0)), None)
        self.ideal_dk = IdealDelays(delays, window)
        self.intra_net = IntraNetwork(num_classes) if intra else None
        channels = len(self._copies) + len(delays) + intra
        self.guide = GuidingNetwork(
            num_classes if intra else 0, channels, positive=normalize == "sum"
        )

    def forward(self, logits: Tensor, image: Tensor, flow: Tensor | None = None) -> Tensor:
        _checks.check_tensor("logits", logits, ("N", self.num_classes, "H", "W"))
        n, _, h, w = logits.shape
        _checks.check_tensor("image", image, (n, 3, h, w), like=logits)
        response = "binary" if self.variant == "published" else "sigmoid"
        intra = None if self.intra_net is None else self.intra_net(image)
        edges = self.run(label_edges, logits, flow=flow, scale=self.scale, response=response)
        guide = self.guide(edges) if intra is None else self.guide(intra, edges)
        delays, normalize = self.ideal_dk.offsets(), self.normalize
        if intra is None:  # a candidate that gets no weight
            intra = torch.zeros_like(logits)
            nothing = 0.0 if normalize == "sum" else -1e4
            guide = torch.cat((guide, torch.full_like(guide[:, :1], nothing)), 1)
        if delays is None:
            guide, delays, normalize = self._over_window(guide), self.ideal_dk.window, "none"
        return self.run(
            guided_filter,
            logits,
            intra,
            guide,
            offsets=self._copies + delays,
            normalize=normalize,
            flow=flow,
            scale=self.scale,
        )

    def _over_window(self, guide: Tensor) -> Tensor:
        """Weights of the window's pixels in place of the guide of the delays.

        `sum_k g_k (kernel_k * S)` is a sum over the window's pixels of S whatever the kernels are.
        """
        if self.normalize == "softmax":
            weights = guide.softmax(1)
        else:
            whole = guide.float() if guide.dtype.itemsize < 4 else guide
            weights = (whole / (whole.sum(1, keepdim=True) + 1e-9)).to(guide.dtype)
        copies = len(self._copies)
        window = F.conv2d(weights[:, copies:-1], self.ideal_dk.taps())
        return torch.cat((weights[:, :copies], window, weights[:, -1:]), 1)

    def extra_repr(self) -> str:
        return (
            f"{self.num_classes}, variant={self.variant!r}, normalize={self.normalize!r},"
            f" scale={self.scale!r}"
        )


class IdealDelays(nn.Module):
    """Kernels that delay: `kernel * S = S(p + offset)` where they are one-hot.

    Attributes:
        window: the offset of each of a kernel's entries.
    """

    def __init__(self, delays: Sequence[Offset], width: int) -> None:
        super().__init__()
        half = width // 2
        reach = range(-half, half + 1)
        self.window: tuple[Offset, ...] = tuple((dy, dx) for dy in reach for dx in reach)
        kernels = torch.zeros(len(delays), 1, 1, width, width)
        for kernel, delay in zip(kernels, delays, strict=True):
            if delay is not None:
                kernel[0, 0, half + delay[0], half + delay[1]] = 1
        self.filter_copy_s = nn.Parameter(kernels, requires_grad=False)
        self._offsets: tuple[Offset, ...] | None = tuple(delays)
        self._seen = (id(self.filter_copy_s), self.filter_copy_s._version)
        self.register_load_state_dict_post_hook(_read)

    def offsets(self) -> tuple[Offset, ...] | None:
        """The delays, or None where the kernels are, or are to become, something else."""
        kernels = self.filter_copy_s
        if kernels.requires_grad:
            return None
        # Compiled code cannot look: there they are what they were at the last look.
        if not torch.compiler.is_compiling() and self._seen != (id(kernels), kernels._version):
            self.read()
        return self._offsets

    def taps(self) -> Tensor:
        """The kernels as a 1 x 1 convolution from delays to the window."""
        return self.filter_copy_s.flatten(1).T[:, :, None, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IdealDelays:
        """Of four dimensions, for `to(memory_format=torch.channels_last)` refuses five."""
        super()._apply(lambda x: fn(x.flatten(1, 2)).unsqueeze(1), recurse)
        return self

    def read(self) -> None:
        """Look at the kernels' values; where there are none (on meta), they are as before."""
        kernels = self.filter_copy_s
        self._seen = (id(kernels), kernels._version)
        if not kernels.is_meta:
            self._offsets = self._one_hot(kernels.flatten(1).tolist())

    def _one_hot(self, kernels: Sequence[Sequence[float]]) -> tuple[Offset, ...] | None:
        """The offset of each kernel's one (None: all are 0); None where there is another number."""
        if any(set(kernel) - {0, 1} or sum(kernel) > 1 for kernel in kernels):
            return None
        return tuple(self.window[kernel.index(1)] if 1 in kernel else None for kernel in kernels)


def _read(delays: IdealDelays, _: object) -> None:
    delays.read()


class IntraNetwork(nn.Module):
    """Logits of a frame, by three convolutions at its size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.intra_net = nn.Sequential(
            *_convolution(3, 32), *_convolution(32, 32), _conv2d(32, num_classes)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.intra_net(image)  # type: ignore[no-any-return]


class GuidingNetwork(nn.Module):
    """The guide, from the edges of the propagated labels, and with them logits of the frame.

    What was made at half and at a quarter of the size is enlarged to the size it had there, so that
    any size will do; the published network needs multiples of 4, where it is the same.
    """

    def __init__(self, num_classes: int, channels: int, *, positive: bool = True) -> None:
        super().__init__()
        self.guide_conv = nn.Sequential(*_convolution(num_classes + 1, 32))
        self.guide_conv_feat = nn.Sequential(
            *_convolution(32, 64, stride=2), *_convolution(64, 128, stride=2)
        )
        enlarged = [*_convolution(128, 64), *_convolution(64, 32)]
        names = "123567"  # where enlargements have numbers too
        self.guide_deconv = nn.Sequential(OrderedDict(zip(names, enlarged, strict=True)))
        decoder = _convolution(32, channels)
        self.guide_decoder = nn.Sequential(*(decoder if positive else decoder[:-1]))

    def forward(self, *maps: Tensor) -> Tensor:
        full = self.guide_conv(torch.cat(maps, 1))
        half = self.guide_conv_feat[:3](full)
        x = self.guide_conv_feat[3:](half)
        x = self.guide_deconv[:3](_resized(x, half))
        x = self.guide_deconv[3:](_resized(x, full))
        return self.guide_decoder(full + x)  # type: ignore[no-any-return]


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def _conv2d(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, out_channels, 3, stride, padding=1)
    nn.init.xavier_normal_(convolution.weight)
    return convolution


def _convolution(channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    """A convolution of 3 x 3, normalised and rectified."""
    return [_conv2d(channels, out_channels, stride), nn.BatchNorm2d(out_channels), nn.ReLU(True)]
