"""TMANet (Wang et al., ICIP 2021) and its variants: the current frame reads a memory of frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vsegops import pyramid_pool
from vsegops._checks import check_bool, check_option, check_tensor, error
from vsegops.nn import (
    AFNB,
    APNB,
    ChannelAttention,
    CrissCrossAttention,
    TemporalMemoryAttention,
)
from vsegops.ops.attention import Level, pyramid_levels
from vsegops.ops.attention.streaming import pool_frame, pool_time

from .backbones.layers import scaled
from .base import Motion, VideoModel
from .dilated import BACKBONES, WIDTH, ConvUnit, DilatedNetwork, Head, Weights
from .registry import register

#: Channels of the head's keys and values; of AFNB's, which has ANN's: at full width.
KEY, VALUE, AFNB_CHANNELS = 64, 256, 256


class TMANet(DilatedNetwork, VideoModel):
    """TMANet: attention from the current frame to the last frames, and variants of it.

    Paper: "Temporal Memory Attention for Video Semantic Segmentation" (ICIP 2021) for
    `attention="full"` over ResNet-50; all else is of "Research and Implementation of Video Semantic
    Segmentation, with Possible Improvements" (2021), whose sections 2 to 5 give the accuracies
    instead of a table. The operators:

    | option | section | operators |
    |---|---|---|
    | `attention="full"` | TMANet | `asymmetric_attention` over every position of every frame |
    | `attention="apnb"` | 2.1 | `pyramid_pool` of each frame, `asymmetric_attention` over anchors |
    | `attention="apnb", afnb=True` | 2.2, Asym-TMANet | both of them, for AFNB as well |
    | `attention="criss_cross"` | 3 | `criss_cross_attention`, `recurrence` times |
    | `attention="dual"` | 4.1 | as `"full"`; channel attention of the current frame is added |
    | `attention="dual_apnb", afnb=True` | 4.2 | as `"apnb"`; channel attention is added |
    | `include_current`, `memory` | 5.2 | |

    `labels` runs `upsample_argmax`. Published files are those of TMANet, with `attention="full"`
    over ResNet-50: 12 classes and 4 frames of memory for CamVid, 19 and 2 for Cityscapes. Each
    place in the memory has weights of its own there: another `memory` is another network.

    The state has the last frames in the order in which they came: `Features` of the backbone, which
    each place of the memory projects anew; `Anchors` where all frames share a projection, pooled
    once; or `Projections`. Before the first frame of a video there is that frame itself: `start`
    fills the memory with it. To train on a clip, `remember` each frame but the last, then `step`.

    Args:
        backbone: `"resnet18"` or `"resnet50"`, dilated; the logits have stride 8.
        num_classes: channels of the logits.
        attention: `"full"`, `"apnb"`, `"criss_cross"`, `"dual"` or `"dual_apnb"`.
        afnb: fuse the last two stages of the current frame first (AFNB).
        memory: how many frames before the current one are kept.
        include_current: the current frame is read along with the memory, as its newest.
        sizes: with APNB, the levels of the pyramid over the memory, as for `vsegops.pyramid_pool`;
            cubes by default.
        recurrence: of the criss-cross attention; 2 reach every pixel.
        deep_supervision: add an auxiliary head on the third stage (`auxiliary_head.*`); in training
            the logits are then a pair: the logits, and a list with the auxiliary ones.
        align_corners: how logits are enlarged; None: as published, False for CamVid's 12 classes
            and True otherwise.
        width_mult: which part of the channels there is, of the backbone and of the head.
        backbone_weights: a published ImageNet classifier for `load_upstream`, or None.
    """

    decode_head: MemoryHead

    def __init__(
        self,
        backbone: str,
        num_classes: int = 19,
        *,
        attention: str = "full",
        afnb: bool = False,
        memory: int = 4,
        include_current: bool = False,
        sizes: Sequence[Level] = (1, 3, 6, 8),
        recurrence: int = 2,
        deep_supervision: bool = False,
        align_corners: bool | None = None,
        width_mult: float = 1.0,
        backbone_weights: Weights = None,
    ) -> None:
        check_bool("afnb", afnb)
        check_bool("include_current", include_current)
        if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
            raise error("memory", "a whole number from 1 on", memory)
        heads: Mapping[str, Callable[..., MemoryHead]] = {
            "full": partial(FullHead, frames=memory + include_current),
            "apnb": partial(PooledHead, sizes=sizes),
            "criss_cross": partial(CrissCrossHead, recurrence=recurrence),
            "dual": partial(FullHead, frames=memory + include_current, dual=True),
            "dual_apnb": partial(PooledHead, sizes=sizes, dual=True),
        }
        check_option("attention", attention, tuple(heads))
        super().__init__(
            backbone,
            partial(heads[attention], num_classes=num_classes, afnb=afnb, width_mult=width_mult),
            num_classes,
            deep_supervision=deep_supervision,
            align_corners=align_corners,
            backbone_weights=backbone_weights,
            width_mult=width_mult,
        )
        self.memory, self.include_current = memory, include_current

    def start(self, frame: Tensor) -> tuple[Any, Any]:
        levels, now = self._seen(frame)
        state = self._filled(now)
        return self._read(levels, now, state), state

    def step(self, frame: Tensor, state: Any, motion: Motion | None = None) -> tuple[Any, Any]:
        levels, now = self._seen(frame)
        moved_on = self._moved_on(state, now)
        return self._read(levels, now, state), moved_on

    def remember(self, frame: Tensor, state: Any = None) -> Any:
        """The state of `start` or `step` alone: for a frame of which no logits are wanted."""
        _, now = self._seen(frame)
        return self._filled(now) if state is None else self._moved_on(state, now)

    def _seen(self, frame: Tensor) -> tuple[list[Tensor], Any]:
        """A frame's features, and a memory of it alone."""
        levels = self.backbone(frame)
        return levels, self.decode_head.remember(levels[3])

    def _read(self, levels: Sequence[Tensor], now: Any, state: Any) -> Any:
        memory = _joined(state, now) if self.include_current else state
        return self.result(self.decode_head(levels, memory), levels)

    def _filled(self, now: Any) -> Any:
        return _joined(*[now] * self.memory)

    def _moved_on(self, state: Any, now: Any) -> Any:
        kind = type(now)
        if not isinstance(state, kind):
            came = type(state).__name__
            raise ValueError(f"state: expected {kind.__name__}, as start gives it, got {came}")
        for name, kept, x in zip(kind._fields, state, now, strict=True):
            n, channels, _, *size = x.shape
            check_tensor(f"state.{name}", kept, (n, channels, self.memory, *size), like=x)
        return _joined(kind(*(x[:, :, 1:] for x in state)), now)


class Features(NamedTuple):
    """Frames as the backbone's last features, `[N, C, T, h, w]`."""

    features: Tensor


class Anchors(NamedTuple):
    """Frames as the bins of their keys and values, `[N, Ck, T, F]` and `[N, Cv, T, F]`."""

    keys: Tensor
    values: Tensor


class Projections(NamedTuple):
    """Frames as their keys and values, `[N, Ck, T, h, w]` and `[N, Cv, T, h, w]`."""

    keys: Tensor
    values: Tensor


def _joined(*memories: Any) -> Any:
    """Memories one after the other."""
    return type(memories[0])(*(torch.cat(parts, 2) for parts in zip(*memories, strict=True)))


class MemoryHead(Head):
    """What every attention shares: what is before it, and what is behind it.

    The current frame's last features, fused with the third stage's first where `afnb` is, read a
    memory; what is read passes the `bottleneck`, a convolution of 3 x 3, and is classified.
    """

    bottleneck: nn.Module

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        afnb: bool,
        dual: bool = False,
        width_mult: float = 1.0,
    ) -> None:
        width, self.key, self.value, fused = (
            scaled(x, width_mult) for x in (WIDTH, KEY, VALUE, AFNB_CHANNELS)
        )
        super().__init__(num_classes, width)
        self.width = width
        low, high = channels[2:]
        self.fusion = AFNB(low, high, high, fused, fused) if afnb else None
        self.channel = None
        if dual:
            self.channel = nn.Sequential(ConvUnit(high, width), ChannelAttention())

    def remember(self, features: Tensor) -> Any:
        """A memory of one frame, of its last features: AFNB is for the current frame alone."""
        raise NotImplementedError

    def read(self, current: Tensor, memory: Any) -> Tensor:
        raise NotImplementedError

    def forward(self, levels: Sequence[Tensor], memory: Any) -> Tensor:
        low, high = levels[2:]
        current = high if self.fusion is None else self.fusion(low, high)
        x = self.read(current, memory)
        if self.channel is not None:
            x = x + self.channel(current)
        return self.classify(self.bottleneck(x))


class FullHead(MemoryHead):
    """TMANet's: every position of every frame is read; each place has its own projections."""

    def __init__(self, channels: Sequence[int], num_classes: int, *, frames: int, **parts: Any):
        super().__init__(channels, num_classes, **parts)

        def embedding(width: int, copies: int) -> list[nn.ModuleList]:
            layers = ((channels[3], width, 1), (width, width, 3))
            return [nn.ModuleList(ConvUnit(*layer) for _ in range(copies)) for layer in layers]

        self.memory_key_conv = nn.ModuleList(embedding(self.key, frames))
        self.memory_value_conv = nn.ModuleList(embedding(self.value, frames))
        self.query_key_conv = nn.Sequential(*(x[0] for x in embedding(self.key, 1)))
        self.query_value_conv = nn.Sequential(*(x[0] for x in embedding(self.value, 1)))
        self.attention = TemporalMemoryAttention()
        self.bottleneck = ConvUnit(2 * self.value, self.width)

    def remember(self, features: Tensor) -> Features:
        return Features(features.unsqueeze(2))

    def read(self, current: Tensor, memory: Features) -> Tensor:
        frames = memory.features.unbind(2)

        def projected(layers: nn.ModuleList) -> Tensor:
            places = zip(frames, *layers, strict=True)
            return torch.stack([second(first(frame)) for frame, first, second in places])

        return self.attention(  # type: ignore[no-any-return]
            projected(self.memory_key_conv),
            projected(self.memory_value_conv),
            self.query_key_conv(current),
            self.query_value_conv(current),
        )


class PooledHead(MemoryHead):
    """The anchors of a pyramid over the memory are read (APNB); all frames share a projection."""

    def __init__(
        self, channels: Sequence[int], num_classes: int, *, sizes: Sequence[Level], **parts: Any
    ):
        super().__init__(channels, num_classes, **parts)
        self.apnb = APNB(channels[3], self.width, self.key, self.value, pyramid_levels(sizes, 3))
        self.bottleneck = ConvUnit(self.width, self.width)

    def remember(self, features: Tensor) -> Anchors:
        embedded = self.apnb.embed(features)
        pooled = (pool_frame(self._pool, x, self.apnb.sizes) for x in embedded)
        return Anchors(*(x.unsqueeze(2) for x in pooled))

    def read(self, current: Tensor, memory: Anchors) -> Tensor:
        anchors = tuple(pool_time(self._pool, x, self.apnb.sizes) for x in memory)
        return self.apnb(current, anchors)  # type: ignore[no-any-return]

    def _pool(self, x: Tensor, sizes: Sequence[Level]) -> Tensor:
        return self.run(pyramid_pool, x, sizes)


class CrissCrossHead(MemoryHead):
    """Space and time apart: the current frame reads itself (CCNet), then each pixel its past."""

    def __init__(self, channels: Sequence[int], num_classes: int, *, recurrence: int, **parts: Any):
        super().__init__(channels, num_classes, **parts)
        self.conva = ConvUnit(channels[3], self.width)
        self.cca = CrissCrossAttention(self.width, recurrence)
        self.time = TimeAttention(channels[3], self.width)
        self.convb = ConvUnit(self.width, self.width)
        self.bottleneck = ConvUnit(channels[3] + self.width, self.width)

    def remember(self, features: Tensor) -> Projections:
        return Projections(*(x.unsqueeze(2) for x in self.time.embed(features)))

    def read(self, current: Tensor, memory: Projections) -> Tensor:
        x = self.time(self.cca(self.conva(current)), *memory)
        return torch.cat((current, self.convb(x)), 1)


class TimeAttention(nn.Module):
    """Each pixel reads its own place in the memory's frames: a criss-cross' arm along time.

    What was read is added, times `gamma`, a number that is learned and starts at 0: the memory only
    supports the current frame.
    """

    def __init__(self, memory_channels: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(memory_channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(memory_channels, channels, 1)

    def embed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of a frame."""
        return self.key_conv(features), self.value_conv(features)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        products = (self.query_conv(x).unsqueeze(2) * keys).sum(1, keepdim=True)
        read: Tensor = (products.softmax(2) * values).sum(2)
        return self.gamma * read + x


for _name in BACKBONES:
    register(f"tmanet_{_name}", TMANet, backbone=_name)
register("tmanet_resnet18_x0_25", TMANet, backbone="resnet18", width_mult=0.25)
