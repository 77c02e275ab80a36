"""A memory of frames that keeps their anchors alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from ..ops.attention import Level, asymmetric_attention, pyramid_levels, pyramid_pool
from ..ops.attention.streaming import pool_frame, pool_time
from ._operators import OperatorModule


class PooledMemory(OperatorModule):
    """The last frames of a video, pooled: each frame once, when it comes.

    Attention over a pyramid of T frames (`vsegops.asymmetric_attention` with `sizes`) needs no more
    of a frame than its means at the spatial levels, some hundred anchors. They are what is kept,
    and a read gives what pooling all T frames together would. It needs keys and values that do not
    depend on a frame's place in the memory: projections that the frames share. (TMANet's published
    head has a set of weights for each place; its frames have to be projected anew.)

    The state is two tensors, `keys` `[N, Ck, T, F]` and `values` `[N, Cv, T, F]`, the oldest frame
    first, or None before the first frame. They move with the module, and gradients flow to the
    frames that were appended with them; `detach()` ends that. They are no part of a state dict.

    Args:
        frames: T, how many frames are kept. Until so many have come, the memory is of those.
        sizes: levels `(t, h, w)` of the pyramid; a number s is `(s, s, s)`.

    Forward:
        query: `[N, Ck, ...]`, what asks.
        scale: as for `vsegops.asymmetric_attention`.

        Returns `[N, Cv, ...]`, what is read of the memory.

    Example:
        >>> import torch, vsegops
        >>> memory = vsegops.nn.PooledMemory(4, ((1, 1, 1), (1, 3, 3), (2, 6, 6), (2, 8, 8)))
        >>> for _ in range(6):  # a video
        ...     query, key = torch.randn(1, 64, 45, 60), torch.randn(1, 64, 45, 60)
        ...     value = torch.randn(1, 256, 45, 60)
        ...     memory.append(key, value)
        ...     context = memory(query)
        >>> context.shape, memory.keys.shape
        (torch.Size([1, 256, 45, 60]), torch.Size([1, 64, 4, 110]))
    """

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, frames: int, sizes: Sequence[Level]) -> None:
        super().__init__()
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise _checks.error("frames", "a whole number from 1 on", frames)
        self.frames, self.sizes = frames, pyramid_levels(sizes, 3)
        self.register_buffer("keys", None, persistent=False)
        self.register_buffer("values", None, persistent=False)

    def append(self, key: Tensor, value: Tensor) -> None:
        """Pool a frame's key `[N, Ck, H, W]` and value `[N, Cv, H, W]`; the oldest frame goes."""
        _checks.check_tensor("key", key, ("N", "Ck", "H", "W"))
        _checks.check_tensor("value", value, (key.shape[0], "Cv", *key.shape[2:]), like=key)
        self.keys = self._appended("key", self.keys, key)
        self.values = self._appended("value", self.values, value)

    def _appended(self, name: str, kept: Tensor | None, frame: Tensor) -> Tensor:
        pooled = pool_frame(self._pool, frame, self.sizes).unsqueeze(2)
        if kept is None:
            return pooled
        n, channels = kept.shape[:2]
        _checks.check_tensor(name, frame, (n, channels, "H", "W"), like=kept)
        going = max(kept.shape[2] + 1 - self.frames, 0)
        return torch.cat((kept[:, :, going:], pooled), 2)

    def read(self) -> tuple[Tensor, Tensor]:
        """The anchors of the memory, keys `[N, Ck, S]` and values `[N, Cv, S]`."""
        if self.keys is None or self.values is None:
            raise RuntimeError("the memory is empty: append a frame first")
        keys, values = (pool_time(self._pool, x, self.sizes) for x in (self.keys, self.values))
        return keys, values

    def _pool(self, x: Tensor, sizes: Sequence[Level]) -> Tensor:
        return self.run(pyramid_pool, x, sizes)

    def forward(self, query: Tensor, scale: float | None = None) -> Tensor:
        return self.run(asymmetric_attention, query, *self.read(), scale=scale)

    def reset(self) -> None:
        """Forget every frame."""
        self.keys = self.values = None

    def detach(self) -> None:
        """Keep the frames, but let no gradient flow to them any more."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.detach(), self.values.detach()

    def extra_repr(self) -> str:
        return f"frames={self.frames}, sizes={self.sizes!r}"
