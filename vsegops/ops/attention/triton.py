"""Attention in Triton: over anchors, and criss-cross.

All kernels see lines: positions of the query that share their keys. Anchors make one line of an
image's pixels. Criss-cross attention is every row as a line, and then every column, which goes on
with the softmax where the row left it and leaves out the pixel itself. Similarities are computed
block by block, forward and backward, and never written; the softmax is an online one, in float32
and powers of 2; products run on tensor cores in half precision.

The backward first finds the softmax's normalizer and its gradient's mean for each pixel; the
gradients are then sums in a fixed order, without atomics.

P pixels over S anchors cost 2 P S (Ck + Cv) operations forward, at the least 2 P S (3 Ck + 2 Cv)
backward; these kernels spend 2 P S (6 Ck + 4 Cv) there, as each of them computes the similarities
anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._layout import dense, empty_like_layout, layout_of, skipped
from ..._triton import INTERPRETED, dot, index_dtype, last_offset, launch, rounded
from .op import KEY, QUERY, VALUE
from .triton_pool import pyramid_pool, pyramid_pool_backward

__all__ = [
    "asymmetric_attention",
    "asymmetric_attention_backward",
    "criss_cross_attention",
    "criss_cross_attention_backward",
    "pyramid_pool",
    "pyramid_pool_backward",
]


@triton.jit
def _place(lines, blocks, tiles, chunks):
    """This program's image, line in the image, block, tile of channels, and chunk."""
    program = tl.program_id(0)
    tile = program % tiles
    program = program // tiles
    block = program % blocks
    program = program // blocks
    chunk = program % chunks
    program = program // chunks
    n = program // lines
    return n.to(tl.int64), (program - n * lines).to(tl.int64), block, tile, chunk


@triton.jit
def _tile_of(data, p, P, c, C, stride_p, stride_c):
    """[positions, channels] of a line; 0 outside."""
    at = p[:, None] * stride_p + c[None, :].to(p.dtype) * stride_c
    return tl.load(data + at, mask=(p < P)[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def _products(
    a, b, p, P, s, S, C, a_p, a_c, b_s, b_c, F: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """sum_c a(p)_c * b(s)_c: [positions, anchors]"""
    total = tl.zeros((p.shape[0], s.shape[0]), F)
    for start in range(0, C, BLOCK_K):
        c = (start + tl.arange(0, BLOCK_K)).to(p.dtype)
        at_a = a + p[:, None] * a_p + c[None, :] * a_c
        at_b = b + c[:, None] * b_c + s[None, :] * b_s
        of_a = tl.load(at_a, mask=(p < P)[:, None] & (c < C)[None, :], other=0.0)
        of_b = tl.load(at_b, mask=(c < C)[:, None] & (s < S)[None, :], other=0.0)
        total = dot(of_a, of_b, total)
    return total


@triton.jit
def _similarities(
    query, key, p, P, s, S, CK, q_p, q_c, k_s, k_c, scale,
    SKIP_SELF: tl.constexpr, F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """log2(e) * scale * query . key, -infinity where there is nothing to attend to."""
    factor = (tl.full((1, 1), scale, tl.float64) * 1.4426950408889634).to(F)
    products = _products(query, key, p, P, s, S, CK, q_p, q_c, k_s, k_c, F, BLOCK_K)
    attended = (s < S)[None, :]
    if SKIP_SELF:
        attended = attended & (s[None, :] != p[:, None])
    return tl.where(attended, products * factor, -float("inf"))


@triton.jit(do_not_specialize=["lines"])
def _attend(
    query, key, value, before, out, normalizer, scale: tl.float64, lines, P, S, CK, CV,
    q_n, q_i, q_c, q_p, k_n, k_i, k_c, k_s, v_n, v_i, v_c, v_s, o_n, o_i, o_c, o_p, l_n, l_i, l_p,
    SKIP_SELF: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out(p) = sum_s exp(similarity(p, s) - normalizer(p)) * value(s)

    Args:
        before: None, or the result over other anchors, whose `normalizer` is read. Without it the
            normalizer is written, where there is one.
    """
    F: tl.constexpr = tl.float64 if query.dtype.element_ty == tl.float64 else tl.float32
    tiles = tl.cdiv(CV, BLOCK_C)
    n, i, block, tile, _ = _place(lines, tl.cdiv(P, BLOCK_P), tiles, 1)
    query += n * q_n + i * q_i
    key += n * k_n + i * k_i
    value += n * v_n + i * v_i
    p = (block * BLOCK_P + tl.arange(0, BLOCK_P)).to(INDEX)
    c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    at = n * o_n + i * o_i + p[:, None] * o_p + c[None, :].to(INDEX) * o_c
    written = (p < P)[:, None] & (c < CV)[None, :]
    if normalizer is not None:
        normalizer += n * l_n + i * l_i + p * l_p
    if before is None:
        largest = tl.full((BLOCK_P,), -float("inf"), F)
        weight = tl.zeros((BLOCK_P,), F)
        total = tl.zeros((BLOCK_P, BLOCK_C), F)
    else:
        largest = tl.load(normalizer, mask=p < P, other=0.0)
        weight = tl.full((BLOCK_P,), 1.0, F)
        total = tl.load(before + at, mask=written, other=0.0)
    for start in range(0, S, BLOCK_S):
        s = (start + tl.arange(0, BLOCK_S)).to(INDEX)
        x = _similarities(
            query, key, p, P, s, S, CK, q_p, q_c, k_s, k_c, scale, SKIP_SELF, F, BLOCK_K
        )
        larger = tl.maximum(largest, tl.max(x, 1))
        e = tl.exp2(x - larger[:, None])
        less = tl.exp2(largest - larger)
        weight = weight * less + tl.sum(e, 1)
        v = _tile_of(value, s, S, c, CV, v_s, v_c)
        total = dot(rounded(e, v.dtype), v, total * less[:, None])
        largest = larger
    tl.store(out + at, rounded(total / weight[:, None], out.dtype.element_ty), mask=written)
    if normalizer is not None and before is None:
        if tile == 0:
            tl.store(normalizer, largest + tl.log2(weight), mask=p < P)


@triton.jit(do_not_specialize=["lines"])
def _statistics(
    query, key, value, grad, normalizer, mean, scale: tl.float64, lines, P, S, CK, CV,
    q_n, q_i, q_c, q_p, k_n, k_i, k_c, k_s, v_n, v_i, v_c, v_s, g_n, g_i, g_c, g_p, l_n, l_i, l_p,
    SKIP_SELF: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of each pixel the softmax's normalizer, and the mean, over its anchors, of grad . value.

    SKIP_SELF: goes on from those of the rows.
    """
    F: tl.constexpr = tl.float64 if query.dtype.element_ty == tl.float64 else tl.float32
    n, i, block, _, _ = _place(lines, tl.cdiv(P, BLOCK_P), 1, 1)
    query += n * q_n + i * q_i
    key += n * k_n + i * k_i
    value += n * v_n + i * v_i
    grad += n * g_n + i * g_i
    p = (block * BLOCK_P + tl.arange(0, BLOCK_P)).to(INDEX)
    at = n * l_n + i * l_i + p * l_p
    if SKIP_SELF:
        largest = tl.load(normalizer + at, mask=p < P, other=0.0)
        weight = tl.full((BLOCK_P,), 1.0, F)
        total = tl.load(mean + at, mask=p < P, other=0.0)
    else:
        largest = tl.full((BLOCK_P,), -float("inf"), F)
        weight = tl.zeros((BLOCK_P,), F)
        total = tl.zeros((BLOCK_P,), F)
    for start in range(0, S, BLOCK_S):
        s = (start + tl.arange(0, BLOCK_S)).to(INDEX)
        x = _similarities(
            query, key, p, P, s, S, CK, q_p, q_c, k_s, k_c, scale, SKIP_SELF, F, BLOCK_K
        )
        d_weights = _products(grad, value, p, P, s, S, CV, g_p, g_c, v_s, v_c, F, BLOCK_K)
        larger = tl.maximum(largest, tl.max(x, 1))
        e = tl.exp2(x - larger[:, None])
        less = tl.exp2(largest - larger)
        weight = weight * less + tl.sum(e, 1)
        total = total * less + tl.sum(e * d_weights, 1)
        largest = larger
    tl.store(normalizer + at, largest + tl.log2(weight), mask=p < P)
    tl.store(mean + at, total / weight, mask=p < P)


@triton.jit
def _weights(
    query, key, normalizer, p, P, s, S, CK, q_p, q_c, k_s, k_c, scale,
    SKIP_SELF: tl.constexpr, F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """softmax_s, once the normalizer is known; 0 beyond the last position."""
    x = _similarities(query, key, p, P, s, S, CK, q_p, q_c, k_s, k_c, scale, SKIP_SELF, F, BLOCK_K)
    most = tl.load(normalizer, mask=p < P, other=float("inf"))
    return tl.exp2(x - most[:, None])


@triton.jit(do_not_specialize=["lines"])
def _query_gradient(
    query, key, value, grad, before, d_query, normalizer, mean, scale: tl.float64,
    lines, P, S, CK, CV,
    q_n, q_i, q_c, q_p, k_n, k_i, k_c, k_s, v_n, v_i, v_c, v_s, g_n, g_i, g_c, g_p, l_n, l_i, l_p,
    SKIP_SELF: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """d_query(p) = before(p) + scale * sum_s weight(p, s) (grad(p) . value(s) - mean(p)) key(s)

    `before` and `d_query` are laid out as the query.
    """
    F: tl.constexpr = tl.float64 if query.dtype.element_ty == tl.float64 else tl.float32
    n, i, block, tile, _ = _place(lines, tl.cdiv(P, BLOCK_P), tl.cdiv(CK, BLOCK_C), 1)
    query += n * q_n + i * q_i
    key += n * k_n + i * k_i
    value += n * v_n + i * v_i
    grad += n * g_n + i * g_i
    p = (block * BLOCK_P + tl.arange(0, BLOCK_P)).to(INDEX)
    c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    normalizer += n * l_n + i * l_i + p * l_p
    means = tl.load(mean + n * l_n + i * l_i + p * l_p, mask=p < P, other=0.0)
    total = tl.zeros((BLOCK_P, BLOCK_C), F)
    for start in range(0, S, BLOCK_S):
        s = (start + tl.arange(0, BLOCK_S)).to(INDEX)
        weights = _weights(query, key, normalizer, p, P, s, S, CK, q_p, q_c, k_s, k_c, scale,
                           SKIP_SELF, F, BLOCK_K)  # fmt: skip
        d_weights = _products(grad, value, p, P, s, S, CV, g_p, g_c, v_s, v_c, F, BLOCK_K)
        d = weights * (d_weights - means[:, None])
        k = _tile_of(key, s, S, c, CK, k_s, k_c)
        total = dot(rounded(d, k.dtype), k, total)
    total *= tl.full((1, 1), scale, tl.float64).to(F)
    at = n * q_n + i * q_i + p[:, None] * q_p + c[None, :].to(INDEX) * q_c
    written = (p < P)[:, None] & (c < CK)[None, :]
    if before is not None:
        total += tl.load(before + at, mask=written, other=0.0)
    tl.store(d_query + at, rounded(total, d_query.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["lines", "chunks"])
def _anchor_gradient(
    query, key, value, grad, before, d, normalizer, mean, scale: tl.float64,
    lines, chunks, P, S, CK, CV,
    q_n, q_i, q_c, q_p, k_n, k_i, k_c, k_s, v_n, v_i, v_c, v_s, g_n, g_i, g_c, g_p, l_n, l_i, l_p,
    d_chunk, d_n, d_i, d_c, d_s,
    OF_KEY: tl.constexpr, SKIP_SELF: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of the keys or of the values, for each chunk of the line's positions apart:

    d_key(s)   = before(s) + scale * sum_p weight(p, s) (grad(p) . value(s) - mean(p)) query(p)
    d_value(s) = before(s) + sum_p weight(p, s) grad(p)
    """
    F: tl.constexpr = tl.float64 if query.dtype.element_ty == tl.float64 else tl.float32
    C = CK if OF_KEY else CV
    blocks = tl.cdiv(S, BLOCK_S)
    n, i, block, tile, chunk = _place(lines, blocks, tl.cdiv(C, BLOCK_C), chunks)
    query += n * q_n + i * q_i
    key += n * k_n + i * k_i
    value += n * v_n + i * v_i
    grad += n * g_n + i * g_i
    normalizer += n * l_n + i * l_i
    mean += n * l_n + i * l_i
    s = (block * BLOCK_S + tl.arange(0, BLOCK_S)).to(INDEX)
    c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_S, BLOCK_C), F)
    for start in range(chunk * BLOCK_P, P, chunks * BLOCK_P):
        p = (start + tl.arange(0, BLOCK_P)).to(INDEX)
        weights = _weights(query, key, normalizer + p * l_p, p, P, s, S, CK, q_p, q_c, k_s, k_c,
                           scale, SKIP_SELF, F, BLOCK_K)  # fmt: skip
        if OF_KEY:
            means = tl.load(mean + p * l_p, mask=p < P, other=0.0)
            d_weights = _products(grad, value, p, P, s, S, CV, g_p, g_c, v_s, v_c, F, BLOCK_K)
            weights *= d_weights - means[:, None]
            x = _tile_of(query, p, P, c, C, q_p, q_c)
        else:
            x = _tile_of(grad, p, P, c, C, g_p, g_c)
        total = dot(tl.trans(rounded(weights, x.dtype)), x, total)
    if OF_KEY:
        total *= tl.full((1, 1), scale, tl.float64).to(F)
    at = n * d_n + i * d_i + s[:, None] * d_s + c[None, :].to(INDEX) * d_c
    at += chunk.to(tl.int64) * d_chunk
    written = (s < S)[:, None] & (c < C)[None, :]
    if before is not None:
        total += tl.load(before + at, mask=written, other=0.0)
    tl.store(d + at, rounded(total, d.dtype.element_ty), mask=written)


# --- launching ---------------------------------------------------------------------------------


class _Blocks(NamedTuple):
    """Positions, anchors, channels that are summed over, channels of the result; warps for them."""

    p: int
    s: int
    k: int
    c: int
    num_warps: int


def _blocks(dtype: torch.dtype, *sizes: int) -> _Blocks:
    """By reasoning: what warps keep in registers, and no more than there is of each."""
    if INTERPRETED.value:
        most = _Blocks(32, 32, 32, 64, 1)
    elif dtype == torch.float64:
        most = _Blocks(32, 32, 16, 32, 4)
    elif dtype == torch.float32:
        most = _Blocks(64, 32, 16, 64, 8)
    else:
        most = _Blocks(64, 64, 32, 128, 8)
    padded = [max(16, triton.next_power_of_2(size)) for size in sizes]
    return _Blocks(*map(min, most, padded), most.num_warps)


#: Programs that fill a large GPU.
_ENOUGH_PROGRAMS = 512


class _Lines:
    """Queries, keys and values as lines, [N, lines of an image, C, positions], and the kernels over
    them. `normalizer` and `mean` are [N, lines, positions]."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, *, skip_self: bool = False
    ) -> None:
        self.query, self.key, self.value = query, key, value
        self.scale, self.skip_self = scale, skip_self

    def attend(self, out: Tensor, normalizer: Tensor | None, before: Tensor | None = None) -> None:
        blocks = self._blocks(self.value)
        self._launch(
            _attend,
            self._count(self.query, blocks.p) * triton.cdiv(self.value.shape[2], blocks.c),
            (before, out, normalizer),
            (out, normalizer),
            BLOCK_C=blocks.c,
            **self._constants(blocks),
        )

    def statistics(self, grad: Tensor, normalizer: Tensor, mean: Tensor) -> None:
        blocks = self._blocks(self.value)
        self._launch(
            _statistics,
            self._count(self.query, blocks.p),
            (grad, normalizer, mean),
            (grad, normalizer),
            **self._constants(blocks),
        )

    def query_gradient(
        self, d: Tensor, grad: Tensor, normalizer: Tensor, mean: Tensor, before: Tensor | None
    ) -> None:
        """`d` has the query's strides."""
        blocks = self._blocks(self.query)
        self._launch(
            _query_gradient,
            self._count(self.query, blocks.p) * triton.cdiv(self.query.shape[2], blocks.c),
            (grad, before, d, normalizer, mean),
            (grad, normalizer),
            BLOCK_C=blocks.c,
            **self._constants(blocks),
        )

    def anchor_gradient(
        self, d: Tensor, grad: Tensor, normalizer: Tensor, mean: Tensor, before: Tensor | None,
        *, of_key: bool,
    ) -> None:  # fmt: skip
        """`d` is [chunks, N, lines, C, anchors], a summand of each chunk of the positions."""
        blocks = self._blocks(d[0])
        self._launch(
            _anchor_gradient,
            self._count(self.key, blocks.s) * triton.cdiv(d.shape[3], blocks.c) * len(d),
            (grad, before, d, normalizer, mean),
            (grad, normalizer, d),
            chunks=(len(d),),
            OF_KEY=of_key,
            BLOCK_C=blocks.c,
            **self._constants(blocks),
        )

    def chunks(self, gradient_of: Tensor) -> int:
        """Into how many a line's positions are divided, for programs enough."""
        blocks = self._blocks(gradient_of)
        programs = self._count(self.key, blocks.s) * triton.cdiv(gradient_of.shape[2], blocks.c)
        enough = 3 if INTERPRETED.value else triton.cdiv(_ENOUGH_PROGRAMS, programs)
        return int(min(enough, triton.cdiv(self.query.shape[3], blocks.p)))

    def _blocks(self, result: Tensor) -> _Blocks:
        channels = max(self.query.shape[2], self.value.shape[2])
        sizes = (self.query.shape[3], self.key.shape[3], channels, result.shape[2])
        return _blocks(self.query.dtype, *sizes)

    def _count(self, x: Tensor, block: int) -> int:
        """Blocks of the positions of all lines."""
        n, lines, _, size = x.shape
        return int(n * lines * triton.cdiv(size, block))

    def _constants(self, blocks: _Blocks) -> dict[str, int]:
        p, s, k, _, num_warps = blocks
        return {"BLOCK_P": p, "BLOCK_S": s, "BLOCK_K": k, "num_warps": num_warps}

    def _launch(
        self,
        kernel: Any,
        programs: int,
        tensors: tuple[Tensor | None, ...],
        strided: tuple[Tensor | None, ...],
        chunks: tuple[int, ...] = (),
        **constants: Any,
    ) -> None:
        """Run `kernel` on `tensors` and the strides of those that are `strided`."""
        read = (self.query, self.key, self.value)
        everything = [x for x in (*read, *strided) if x is not None]
        strides = [x.stride() if x is not None else (0, 0, 0) for x in (*read, *strided)]
        _, lines, ck, p = self.query.shape
        _, _, cv, s = self.value.shape
        launch(
            kernel,
            programs,
            *(*read, *tensors, self.scale, lines, *chunks, p, s, ck, cv),
            *(stride for of_one in strides for stride in of_one),
            SKIP_SELF=self.skip_self,
            INDEX=index_dtype(*map(last_offset, everything)),
            **constants,
        )


def _compute(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# --- attention over anchors --------------------------------------------------------------------


def _pixels(x: Tensor) -> Tensor:
    """All of an image is one line."""
    return x.flatten(2).unsqueeze(1)


def _scale(query: Tensor, scale: float | None) -> float:
    return float(query.shape[1]) ** -0.5 if scale is None else scale


def asymmetric_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    out = empty_like_layout(query, (query.shape[0], value.shape[1], *query.shape[2:]))
    if out.numel() > 0:
        asking = _pixels(dense(query, layout_of(query)))
        lines = _Lines(asking, key.unsqueeze(1), value.unsqueeze(1), _scale(query, scale))
        lines.attend(_pixels(out), None)
    return out


def asymmetric_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float | None, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    layout = layout_of(query)
    d_query = empty_like_layout(query) if wanted & QUERY else skipped(query)
    if grad.numel() == 0:
        return (
            d_query.zero_(),
            key.new_zeros(key.shape) if wanted & KEY else skipped(key),
            value.new_zeros(value.shape) if wanted & VALUE else skipped(value),
        )
    asking, incoming = _pixels(dense(query, layout)), _pixels(dense(grad, layout))
    lines = _Lines(asking, key.unsqueeze(1), value.unsqueeze(1), _scale(query, scale))
    normalizer = query.new_empty(len(query), 1, asking.shape[3], dtype=_compute(query))
    given = (incoming, normalizer, torch.empty_like(normalizer))
    lines.statistics(*given)
    if wanted & QUERY:
        lines.query_gradient(_pixels(d_query), *given, None)

    def of(x: Tensor, *, of_key: bool) -> Tensor:
        chunks = lines.chunks(x.unsqueeze(1))
        dtype = x.dtype if chunks == 1 else _compute(x)
        d = x.new_empty(chunks, len(x), 1, *x.shape[1:], dtype=dtype)
        lines.anchor_gradient(d, *given, None, of_key=of_key)
        return (d[0] if chunks == 1 else d.sum(0).to(x.dtype)).squeeze(1)

    return (
        d_query,
        of(key, of_key=True) if wanted & KEY else skipped(key),
        of(value, of_key=False) if wanted & VALUE else skipped(value),
    )


# --- criss-cross -------------------------------------------------------------------------------


def _rows(x: Tensor) -> Tensor:
    """Every row is a line. `x` is [N, C, H, W]."""
    return x.transpose(1, 2)


def _columns(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _cross(query: Tensor, key: Tensor, value: Tensor) -> tuple[_Lines, _Lines]:
    """The rows, and the columns without the pixel itself, of dense tensors of one layout."""
    tensors = [dense(x, layout_of(query)) for x in (query, key, value)]
    rows = _Lines(*map(_rows, tensors), 1.0)  # type: ignore[misc]
    return rows, _Lines(*map(_columns, tensors), 1.0, skip_self=True)  # type: ignore[misc]


def _of_rows(x: Tensor) -> Tensor:
    """What the rows contribute to `x`, not yet rounded; `x` itself where that needs no rounding."""
    return x if x.dtype == _compute(x) else torch.empty_like(x, dtype=_compute(x))


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = empty_like_layout(value, layout=layout_of(query))
    if out.numel() > 0:
        rows, columns = _cross(query, key, value)
        n, _, h, w = out.shape
        normalizer = out.new_empty(n, h, w, dtype=_compute(out))
        first = _of_rows(out)
        rows.attend(_rows(first), normalizer)
        columns.attend(_columns(out), normalizer.mT, _columns(first))
    return out


def criss_cross_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, wanted: int
) -> tuple[Tensor, ...]:
    layout = layout_of(query)
    gradients = [
        empty_like_layout(x, layout=layout) if wanted & bit else skipped(x)
        for x, bit in ((query, QUERY), (key, KEY), (value, VALUE))
    ]
    if grad.numel() == 0:
        return tuple(d.zero_() for d in gradients)
    rows, columns = _cross(query, key, value)
    grad = dense(grad, layout)
    n, _, h, w = grad.shape
    normalizer = grad.new_empty(n, h, w, dtype=_compute(grad))
    mean = torch.empty_like(normalizer)
    by_row = (_rows(grad), normalizer, mean)
    by_column = (_columns(grad), normalizer.mT, mean.mT)
    rows.statistics(*by_row)
    columns.statistics(*by_column)
    for d, bit in zip(gradients, (QUERY, KEY, VALUE), strict=True):
        first = _of_rows(d)
        if not wanted & bit:
            continue
        if bit == QUERY:
            rows.query_gradient(_rows(first), *by_row, None)
            columns.query_gradient(_columns(d), *by_column, _columns(first))
        else:
            key_too = {"of_key": bit == KEY}
            rows.anchor_gradient(_rows(first)[None], *by_row, None, **key_too)
            columns.anchor_gradient(_columns(d)[None], *by_column, _columns(first), **key_too)
    return tuple(gradients)
