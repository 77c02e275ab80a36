"""Blocks of attention: ANN's asymmetric ones, TMANet's memory, CCNet's criss-cross, DANet's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops.attention import Level, asymmetric_attention, criss_cross_attention
from ._operators import OperatorModule


class _Stage(OperatorModule):
    """Queries read the anchors of another map (or of the same one); `W` starts at zero."""

    def __init__(
        self,
        channels: int,
        query_channels: int | None,
        out_channels: int,
        key_channels: int,
        value_channels: int,
    ) -> None:
        super().__init__()
        self.f_key = _embedding(channels, key_channels)
        # None: one module under both names. Of a checkpoint the later name wins, f_query.
        self.f_query = (
            self.f_key if query_channels is None else _embedding(query_channels, key_channels)
        )
        self.f_value = nn.Conv2d(channels, value_channels, 1)
        self.W = nn.Conv2d(value_channels, out_channels, 1)
        nn.init.zeros_(self.W.weight)
        nn.init.zeros_(_bias(self.W))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[Level] | None
    ) -> Tensor:
        context = self.run(asymmetric_attention, query, key, value, sizes=sizes)
        return self.W(context)  # type: ignore[no-any-return]


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias


def _embedding(channels: int, out_channels: int) -> nn.Sequential:
    normalized = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(True))
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1), normalized)


class _Block(OperatorModule):
    """One such stage, and what projects its result and the map together."""

    stages: nn.ModuleList
    conv_bn_dropout: nn.Sequential
    sizes: tuple[Level, ...]

    @property
    def stage(self) -> _Stage:
        (stage,) = self.stages
        assert isinstance(stage, _Stage)
        return stage

    def _join(self, context: Tensor, x: Tensor) -> Tensor:
        return self.conv_bn_dropout(torch.cat((context, x), 1))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"sizes={self.sizes!r}"


class APNB(_Block):
    """Asymmetric pyramid non-local block: each pixel reads the anchors of its own map (ANN).

    Key and value are projections of the map, pooled to the bins of a pyramid, some hundred anchors
    in place of all pixels; the query is the key before it is pooled. What was read and the map are
    projected together. `W`, behind the attention, starts at zero: at first the block is a 1 x 1
    convolution.

    The map to read may be a memory of frames: the report on Asym-TMANet pools them as a volume.
    The frames share the block's projections, so their anchors can be kept (`embed`, and
    `vsegops.nn.PooledMemory`), and each frame of a video is embedded and pooled once.

    Args:
        in_channels: of the map, and of the memory.
        out_channels: of the result.
        key_channels: of query and key.
        value_channels: of the value.
        sizes: levels of the pyramid, as for `vsegops.pyramid_pool`: `(h, w)` of the map, or
            `(t, h, w)` of a memory; a number s is s along each of them.
        dropout: share of channels that training leaves out, at the end.

    Forward:
        x: `[N, in_channels, H, W]`.
        memory: what is read in place of `x`: frames `[N, in_channels, T, h, w]`, or key and value
            as `embed` and `PooledMemory.read` give them.

        Returns `[N, out_channels, H, W]`.

    Example:
        >>> import torch, vsegops
        >>> block = vsegops.nn.APNB(512, 512, key_channels=256, value_channels=256).eval()
        >>> block(torch.randn(1, 512, 20, 30)).shape
        torch.Size([1, 512, 20, 30])
        >>> frame, memory = torch.randn(1, 512, 20, 30), torch.randn(1, 512, 4, 20, 30)
        >>> block(frame, memory).shape
        torch.Size([1, 512, 20, 30])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        sizes: Sequence[Level] = (1, 3, 6, 8),
        *,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.in_channels, self.sizes = in_channels, tuple(sizes)
        stage = _Stage(in_channels, None, out_channels, key_channels, value_channels)
        self.stages = nn.ModuleList([stage])
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(out_channels + in_channels, out_channels, 1),
            nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(True)),
            nn.Dropout2d(dropout),
        )

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of a map `[N, in_channels, H, W]` or of frames `[N, in_channels, T, H, W]`.

        The frames of a memory are normalised together, as the images of a batch are.
        """
        frames = isinstance(x, Tensor) and x.dim() == 5
        _checks.check_tensor("x", x, ("N", self.in_channels, *("T" * frames), "H", "W"))
        stage = self.stage
        if not frames:
            return stage.f_key(x), stage.f_value(x)
        tall = x.flatten(2, 3)  # pixel by pixel it is the same
        key, value = stage.f_key(tall), stage.f_value(tall)
        return key.unflatten(2, x.shape[2:4]), value.unflatten(2, x.shape[2:4])

    def forward(self, x: Tensor, memory: Tensor | tuple[Tensor, Tensor] | None = None) -> Tensor:
        _checks.check_tensor("x", x, ("N", self.in_channels, "H", "W"))
        if memory is None:
            query, value = self.embed(x)
            key = query
        else:
            query = self.stage.f_query(x)
            key, value = self.embed(memory) if isinstance(memory, Tensor) else memory
        sizes = None if key.dim() == 3 else self.sizes  # (anchors were pooled before)
        return self._join(self.stage(query, key, value, sizes), x)


class AFNB(_Block):
    """Asymmetric fusion non-local block: a deep map's pixels read the anchors of another (ANN).

    As `APNB`, with key and value of a shallower map and a projection of its own for the query.

    Args:
        low_channels: of the shallower map (stage 4 of a ResNet, as published).
        high_channels: of the deeper map (stage 5).
        out_channels: of the result.
        key_channels: of query and key.
        value_channels: of the value.
        sizes: levels of the pyramid, as for `vsegops.pyramid_pool`.
        dropout: share of channels that training leaves out, at the end.

    Forward:
        low: `[N, low_channels, h, w]`, not necessarily of the size of the other: it is pooled.
        high: `[N, high_channels, H, W]`.

        Returns `[N, out_channels, H, W]`.

    Example:
        >>> import torch, vsegops
        >>> block = vsegops.nn.AFNB(256, 512, 512, key_channels=256, value_channels=256).eval()
        >>> block(torch.randn(1, 256, 20, 30), torch.randn(1, 512, 10, 15)).shape
        torch.Size([1, 512, 10, 15])
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        sizes: Sequence[Level] = (1, 3, 6, 8),
        *,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.low_channels, self.high_channels = low_channels, high_channels
        self.sizes = tuple(sizes)
        stage = _Stage(low_channels, high_channels, out_channels, key_channels, value_channels)
        self.stages = nn.ModuleList([stage])
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(out_channels + high_channels, out_channels, 1),
            nn.BatchNorm2d(out_channels),
            nn.Dropout2d(dropout),
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        _checks.check_tensor("low", low, ("N", self.low_channels, "h", "w"))
        shape = (low.shape[0], self.high_channels, "H", "W")
        _checks.check_tensor("high", high, shape, like=low)
        stage = self.stage
        context = stage(stage.f_query(high), stage.f_key(low), stage.f_value(low), self.sizes)
        return self._join(context, high)


class TemporalMemoryAttention(OperatorModule):
    """The current frame reads the frames before it (TMANet's memory module; no weights).

    Args:
        sizes: None, as published: every position of every frame is read. Or the levels `(t, h, w)`
            of a pyramid over the memory, as for `vsegops.pyramid_pool`, whose anchors are read.
        scaled: whether the products are scaled by `Ck ** -0.5`; published networks do without.

    Forward:
        memory_keys: `[T, N, Ck, h, w]`, the oldest frame first (as all of them are read alike, the
            order matters only to a pyramid).
        memory_values: `[T, N, Cv, h, w]`.
        query_key: `[N, Ck, H, W]`, of the current frame.
        query_value: `[N, Cv, H, W]`.

        Returns `[N, 2 Cv, H, W]`: the current frame's value, then what was read.

    Example:
        >>> import torch, vsegops
        >>> memory = vsegops.nn.TemporalMemoryAttention()
        >>> keys, values = torch.randn(4, 1, 64, 12, 16), torch.randn(4, 1, 256, 12, 16)
        >>> memory(keys, values, torch.randn(1, 64, 12, 16), torch.randn(1, 256, 12, 16)).shape
        torch.Size([1, 512, 12, 16])
    """

    def __init__(self, sizes: Sequence[Level] | None = None, *, scaled: bool = False) -> None:
        super().__init__()
        _checks.check_bool("scaled", scaled)
        self.sizes, self.scaled = sizes, scaled

    def forward(
        self, memory_keys: Tensor, memory_values: Tensor, query_key: Tensor, query_value: Tensor
    ) -> Tensor:
        _checks.check_tensor("query_key", query_key, ("N", "Ck", "H", "W"))
        n, channels, h, w = query_key.shape
        _checks.check_tensor("query_value", query_value, (n, "Cv", h, w), like=query_key)
        _checks.check_tensor(
            "memory_keys", memory_keys, ("T", n, channels, "h", "w"), like=query_key
        )
        t, _, _, *size = memory_keys.shape
        shape = (t, n, query_value.shape[1], *size)
        _checks.check_tensor("memory_values", memory_values, shape, like=query_key)
        read = self.run(
            asymmetric_attention,
            query_key,
            memory_keys.permute(1, 2, 0, 3, 4),
            memory_values.permute(1, 2, 0, 3, 4),
            sizes=self.sizes,
            scale=None if self.scaled else 1.0,
        )
        return torch.cat((query_value, read), 1)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes!r}, scaled={self.scaled}"


class CrissCrossAttention(OperatorModule):
    """Each pixel reads its row and its column, and so, twice over, every pixel (CCNet).

    What was read is added to the map, times `gamma`, a number that is learned and starts at 0.

    Args:
        channels: C, of the map; queries and keys have an eighth of them.
        recurrence: how often the module, with the same weights, is applied to its own result. Two
            times reach every pixel.

    Forward:
        x: `[N, C, H, W]`.

        Returns `[N, C, H, W]`.

    Example:
        >>> import torch, vsegops
        >>> attention = vsegops.nn.CrissCrossAttention(64, recurrence=2)
        >>> attention(torch.randn(1, 64, 20, 30)).shape
        torch.Size([1, 64, 20, 30])
    """

    def __init__(self, channels: int, recurrence: int = 1) -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 8:
            raise _checks.error("channels", "a whole number from 8 on", channels)
        if isinstance(recurrence, bool) or not isinstance(recurrence, int) or recurrence < 1:
            raise _checks.error("recurrence", "a whole number from 1 on", recurrence)
        self.channels, self.recurrence = channels, recurrence
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        _checks.check_tensor("x", x, ("N", self.channels, "H", "W"))
        for _ in range(self.recurrence):
            query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
            read = self.run(criss_cross_attention, query, key, value)
            x = self.gamma * read + x
        return x

    def extra_repr(self) -> str:
        return f"{self.channels}, recurrence={self.recurrence}"


class ChannelAttention(nn.Module):
    """Each channel reads the channels that differ from it (DANet's channel attention module).

    `out = gamma * softmax(-X X^T) X + X` for the features X, `[C, H W]`; gamma is a number that is
    learned and starts at 0. (The published `max(E) - E` of the products E is `-E` to a softmax.)

    Forward:
        x: `[N, C, H, W]`.

        Returns `[N, C, H, W]`.

    Example:
        >>> import torch, vsegops
        >>> vsegops.nn.ChannelAttention()(torch.randn(1, 64, 20, 30)).shape
        torch.Size([1, 64, 20, 30])
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        _checks.check_tensor("x", x, ("N", "C", "H", "W"))
        channels = x.flatten(2)
        weights = (-(channels @ channels.mT)).softmax(-1)
        return self.gamma * (weights @ channels).view_as(x) + x
