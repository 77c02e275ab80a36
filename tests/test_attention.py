"""What is particular to attention: streaming, memory, published modules and outputs."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import fill
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import OperatorCalls, Target, assert_close, evaluate
from test_contract import peak_memory
from torch import Tensor, nn

from vsegops import (
    asymmetric_attention,
    criss_cross_attention,
    pyramid_pool,
    pyramid_pool_frame,
    pyramid_pool_time,
)
from vsegops._spec import Maker, tensor_bytes
from vsegops.nn import (
    AFNB,
    APNB,
    ChannelAttention,
    CrissCrossAttention,
    PooledMemory,
    TemporalMemoryAttention,
)

DATA = Path(__file__).parent / "data"

#: Levels over time for a memory of a few frames.
LEVELS = ((1, 1, 1), (1, 3, 3), (2, 2, 3), (2, 4, 4), (3, 3, 3))


def features(target: Target, *shape: int, seed: int = 0, dtype=torch.float64, **options) -> Tensor:
    return Maker(device=target.device, dtype=dtype, seed=seed, **options).features(*shape)


def by_hand(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention over anchors `[N, C, S]`, with the map written out."""
    similarity = scale * query.flatten(2).mT @ key
    return (value @ similarity.softmax(-1).mT).unflatten(2, query.shape[2:])


# --- pooling and attention ----------------------------------------------------------------------


def test_cubes_are_those_of_adaptive_pooling(target: Target):
    """A number is a level in every dimension: 1 + 27 + 216 + 512 anchors of a memory."""
    query = features(target, 1, 8, 5, 7)
    key, value = features(target, 1, 8, 4, 6, 9, seed=1), features(target, 1, 6, 4, 6, 9, seed=2)
    sizes = (1, 3, 6, 8)

    def cubes(x: Tensor) -> Tensor:
        return torch.cat([nn.AdaptiveAvgPool3d(size)(x).flatten(2) for size in sizes], 2)

    assert cubes(key).shape[2] == 756
    assert_close(pyramid_pool(key, sizes), cubes(key), error=0.0)
    expected = by_hand(query, cubes(key), cubes(value), 8**-0.5)
    assert_close(asymmetric_attention(query, key, value, sizes=sizes), expected, error=0.0)


def test_the_order_of_anchors_does_not_matter(target: Target):
    query = features(target, 2, 8, 6, 7)
    key, value = features(target, 2, 8, 50, seed=1), features(target, 2, 12, 50, seed=2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0)).to(key.device)
    first = asymmetric_attention(query, key, value)
    second = asymmetric_attention(query, key[..., order], value[..., order])
    assert_close(second, first, error=0.0)


def test_one_anchor_is_the_mean_of_the_values(target: Target):
    query, value = features(target, 2, 8, 6, 7), features(target, 2, 12, 9, 5, seed=2)
    out = asymmetric_attention(query, value[:, :8], value, sizes=(1,))
    assert_close(out, value.mean((2, 3), keepdim=True).expand_as(out), error=0.0)
    everywhere = asymmetric_attention(query, value[:, :8], value, scale=0)
    assert_close(everywhere, out, error=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operator", ["asymmetric", "criss-cross"])
def test_very_large_logits_do_not_overflow(target: Target, operator, dtype):
    """A similarity far above the others takes all the weight, and no gradient is left for it."""
    n, c, h, w = 1, 4, 5, 6
    query = torch.zeros(n, c, h, w, dtype=dtype, device=target.device)
    query[:, 0] = 200  # the products are 40,000 times the first channel of the key
    key = torch.linspace(-200, 200, h * w).view(1, 1, h, w).repeat(n, c, 1, 1).to(query)
    value = features(target, n, 3, h, w, dtype=dtype)
    function = criss_cross_attention if operator == "criss-cross" else asymmetric_attention
    result = evaluate(
        function, {"query": query, "key": key, "value": value}, ["query", "key", "value"]
    )
    if operator == "criss-cross":  # the last of the column, or of the row if that is the last row
        best = value[..., -1:, :].repeat(1, 1, h, 1)
        best[..., -1, :] = value[..., -1, -1:]
    else:
        best = value[..., -1:, -1:].expand_as(result.output)
    assert torch.equal(result.output, best)
    assert all(x.isfinite().all() for x in result.gradients.values())
    assert result.gradients["value"].any()
    for name in ("query", "key"):
        assert result.gradients[name].abs().max() <= 1e-3


def test_positions_are_attended_to_where_they_are(target: Target):
    """Without sizes nothing is copied on the way to the operator, in either layout."""
    query = features(target, 1, 8, 5, 6)
    for channels_last in (False, True):
        memory = features(target, 1, 8, 3, 5, 6, channels_last=channels_last)
        with OperatorCalls() as operators:
            asymmetric_attention(query, memory, memory)
        ((_, (_, key, value, _)),) = operators.calls
        assert key.data_ptr() == value.data_ptr() == memory.data_ptr()
        assert key.stride(2) == (8 if channels_last else 1)


def test_criss_cross_is_masked_attention(target: Target):
    """All pixels, with -infinity for those that share neither row nor column."""
    n, h, w = 2, 5, 7
    query, key = features(target, n, 4, h, w), features(target, n, 4, h, w, seed=1)
    value = features(target, n, 6, h, w, seed=2)
    pixel = torch.arange(h * w, device=query.device)
    y, x = pixel // w, pixel % w
    crossing = (y[:, None] == y) | (x[:, None] == x)
    assert crossing.sum(1).eq(h + w - 1).all()

    def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        similarity = query.flatten(2).mT @ key.flatten(2)
        weights = similarity.masked_fill(~crossing, float("-inf")).softmax(-1)
        return (value.flatten(2) @ weights.mT).view_as(value)

    arguments = {"query": query, "key": key, "value": value}
    ours = evaluate(criss_cross_attention, arguments, list(arguments))
    theirs = evaluate(masked, arguments, list(arguments))
    assert_close(ours.output, theirs.output, error=0.0)
    for name, gradient in theirs.gradients.items():
        assert_close(ours.gradients[name], gradient, error=0.0, what=name)


@pytest.mark.not_interpreted("it copies every tensor")
@pytest.mark.only("cpu", "cuda", "triton")
@pytest.mark.parametrize("sizes", [(1, 3, 6, 8), None], ids=["anchors", "positions"])
def test_the_similarities_are_not_written(target: Target, sizes):
    """Neither way: a small part of the map is more than the call allocates."""
    c, query_size, memory_size = 8, (64, 72), (3, 40, 48)
    query = features(target, 1, c, *query_size, dtype=torch.float32).requires_grad_()
    memory = features(target, 1, c, *memory_size, dtype=torch.float32).requires_grad_()
    call = partial(asymmetric_attention, query, memory, memory, sizes=sizes)
    anchors = 756 if sizes else torch.Size(memory_size).numel()
    output = call()
    backward = partial(
        torch.autograd.grad, output, [query, memory], torch.ones_like(output), retain_graph=True
    )
    for run in (call, backward):
        run()  # what is made once is made here
        assert peak_memory(run, target.device) < query[0, 0].numel() * anchors * 4 / 4


# --- streaming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_frames_pooled_one_by_one_are_the_pyramid(target: Target, frames):
    images = [features(target, 2, 3, 9, 11, seed=i).requires_grad_() for i in range(frames)]
    whole = pyramid_pool(torch.stack(images, 2), LEVELS)
    pooled = torch.stack([pyramid_pool_frame(image, LEVELS) for image in images], 2)
    parts = pyramid_pool_time(pooled, LEVELS)
    assert_close(parts, whole, error=0.0)
    weights = features(target, *whole.shape, seed=9)
    expected = torch.autograd.grad(whole, images, weights)
    for gradient, truth in zip(torch.autograd.grad(parts, images, weights), expected, strict=True):
        assert_close(gradient, truth, error=0.0)


def test_a_memory_holds_the_last_frames(target: Target):
    memory = PooledMemory(3, LEVELS)
    with pytest.raises(RuntimeError, match="the memory is empty"):
        memory.read()
    keys = [features(target, 2, 4, 8, 10, seed=i).requires_grad_() for i in range(5)]
    values = [features(target, 2, 6, 8, 10, seed=10 + i).requires_grad_() for i in range(5)]
    query = features(target, 2, 4, 6, 7, seed=20)
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        memory.append(key, value)
        first = max(i - 2, 0)
        kept = [torch.stack(frames[first : i + 1], 2) for frames in (keys, values)]
        expected = asymmetric_attention(query, *kept, sizes=LEVELS, scale=0.5)
        assert_close(memory(query, scale=0.5), expected, error=0.0, what=f"frame {i}")
    gradients = torch.autograd.grad(memory(query).sum(), keys + values, allow_unused=True)
    seen = [gradient is not None and bool(gradient.any()) for gradient in gradients]
    assert seen == 2 * [False, False, True, True, True]
    assert memory.keys is not None and memory.keys.shape == (2, 4, 3, 1 + 9 + 6 + 16)
    assert not memory.state_dict()
    before = memory.read()[0]
    memory.detach()
    assert not memory(query).requires_grad
    assert copy.deepcopy(memory).float().keys.dtype == torch.float32
    assert_close(memory.read()[0], before, error=1e-6)
    memory.reset()
    assert memory.keys is None and memory.values is None


def test_a_frame_of_a_stream_is_pooled_once(target: Target):
    """What pooling reads: the new frame, and then the anchors of T frames, not T frames."""
    memory = PooledMemory(4, LEVELS)
    key, value = features(target, 1, 8, 24, 30), features(target, 1, 16, 24, 30)
    for _ in range(4):
        memory.append(key, value)
    with OperatorCalls() as operators:
        memory.append(key, value)
        memory.read()
    read = [given[0] for operator, given in operators.calls if "pyramid_pool" in operator.name()]
    images = [x for x in read if x.shape[2:] == (24, 30)]
    assert [x.shape[1] for x in images] == [8, 16]
    assert tensor_bytes(*read) < 1.6 * tensor_bytes(*images)


def test_memories_refuse_what_does_not_fit(target: Target):
    with pytest.raises(ValueError, match="frames: expected a whole number from 1 on, got int 0"):
        PooledMemory(0, LEVELS)
    with pytest.raises(ValueError, match=r"sizes: expected 1 to 16 levels, each \(t, h, w\) or"):
        PooledMemory(2, ((3, 3),))
    memory = PooledMemory(2, LEVELS)
    key, value = features(target, 1, 4, 6, 6), features(target, 1, 5, 6, 6)
    with pytest.raises(ValueError, match=r"value: expected a \[1, Cv, 6, 6\] tensor"):
        memory.append(key, value[:, :, 1:])
    memory.append(key, value)
    with pytest.raises(ValueError, match=r"key: expected a \[1, 4, H, W\] tensor"):
        memory.append(key[:, :3], value)
    with pytest.raises(ValueError, match=r"input: expected a \[N, C, T, 32\] tensor"):
        pyramid_pool_time(key, LEVELS)
    with pytest.raises(ValueError, match=r"input: expected a \[N, C, H, W\] tensor"):
        pyramid_pool_frame(key[None], LEVELS)


# --- modules ------------------------------------------------------------------------------------


def normalization(name: str, channels: int) -> dict:
    entries = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{entry}": (channels,) for entry in entries} | {
        f"{name}.num_batches_tracked": ()
    }


def convolution(name: str, channels: int, out: int) -> dict:
    return {f"{name}.weight": (out, channels, 1, 1), f"{name}.bias": (out,)}


def embedding(name: str, channels: int) -> dict:
    return convolution(f"{name}.0", channels, 256) | normalization(f"{name}.1.0", 256)


#: Behind "context.2." and "fusion." of the published ANN, and "head.cca." of CCNet.
PUBLISHED = [
    (
        lambda: APNB(512, 512, 256, 256),
        {
            **embedding("stages.0.f_key", 512),
            **embedding("stages.0.f_query", 512),
            **convolution("stages.0.f_value", 512, 256),
            **convolution("stages.0.W", 256, 512),
            **convolution("conv_bn_dropout.0", 1024, 512),
            **normalization("conv_bn_dropout.1.0", 512),
        },
        920_576,
    ),
    (
        lambda: AFNB(1024, 2048, 2048, 256, 256),
        {
            **embedding("stages.0.f_key", 1024),
            **embedding("stages.0.f_query", 2048),
            **convolution("stages.0.f_value", 1024, 256),
            **convolution("stages.0.W", 256, 2048),
            **convolution("conv_bn_dropout.0", 4096, 2048),
            **normalization("conv_bn_dropout.1", 2048),
        },
        9_971_456,
    ),
    (
        lambda: CrissCrossAttention(64),
        {
            "gamma": (1,),
            **convolution("query_conv", 64, 8),
            **convolution("key_conv", 64, 8),
            **convolution("value_conv", 64, 64),
        },
        5_201,
    ),
]


@pytest.mark.parametrize("make, published, parameters", PUBLISHED)
def test_entries_are_the_published_ones(make, published, parameters):
    module = make()
    assert {name: tuple(x.shape) for name, x in module.state_dict().items()} == published
    assert list(module.state_dict()) == list(published)
    assert sum(x.numel() for x in module.parameters()) == parameters


def filled(target: Target, module: nn.Module, prefix: str) -> nn.Module:
    fill.fill(module, prefix)
    return module.to(target.device).eval()


def image(target: Target, *shape: int, seed: int = 0) -> Tensor:
    """Features with regions: of noise, anchors are so alike that nothing is attended to."""
    coarse = features(target, *shape[:-2], 3, 4, seed=seed, dtype=torch.float32)
    noise = features(target, *shape, seed=seed + 1, dtype=torch.float32)
    size = shape[-2:] if len(shape) == 4 else shape[-3:]
    return F.interpolate(coarse, size) + 0.2 * noise


def anchors(x: Tensor, sizes: tuple) -> Tensor:
    pool = F.adaptive_avg_pool3d if x.dim() == 5 else F.adaptive_avg_pool2d
    return torch.cat([pool(x, size).flatten(2) for size in sizes], 2)


def test_temporal_memory_is_the_published_one(target: Target):
    shapes = {"keys": (4, 2, 16, 6, 5), "values": (4, 2, 24, 6, 5)}
    shapes |= {"query_key": (2, 16, 6, 5), "query_value": (2, 24, 6, 5)}
    given = [
        fill.features(f"memory.{name}", *shape, bound=1.0).to(target.device)
        for name, shape in shapes.items()
    ]
    golden = np.load(DATA / "memory_module.npz")
    published = TemporalMemoryAttention()(*given)
    assert_close(published, torch.from_numpy(golden["out"]), error=2e-6)
    scaled = TemporalMemoryAttention(scaled=True)(*given)
    assert_close(scaled, torch.from_numpy(golden["out_matmul_norm"]), error=2e-6)
    assert_close(published[:, :24], given[3], error=0.0)
    sizes = ((1, 1, 1), (2, 3, 3))
    pooled = TemporalMemoryAttention(sizes)(*given)[:, 24:]
    keys, values = (anchors(x.movedim(0, 2), sizes) for x in given[:2])
    assert_close(pooled, by_hand(given[2], keys, values, 1.0), error=2e-6)


def test_apnb_step_by_step(target: Target):
    block = filled(target, APNB(64, 48, 16, 24), "APNB")
    stage = block.stage
    x = image(target, 2, 64, 9, 13)
    with torch.no_grad():
        key, value = stage.f_key(x), stage.f_value(x)
        context = by_hand(key, anchors(key, (1, 3, 6, 8)), anchors(value, (1, 3, 6, 8)), 0.25)
        expected = block.conv_bn_dropout(torch.cat((stage.W(context), x), 1))
        assert_close(block(x), expected, error=1e-5)
        without = block.conv_bn_dropout(torch.cat((stage.W(0 * context), x), 1))
    assert (expected - without).abs().max() > 0.1 * expected.abs().max(), "nothing is attended to"


def test_apnb_reads_a_memory(target: Target):
    """Frames, their keys and values, and a stream of them are one and the same."""
    block = filled(target, APNB(32, 32, 16, 24, sizes=LEVELS), "APNB")
    stage = block.stage
    x, memory = image(target, 2, 32, 9, 13), image(target, 2, 32, 3, 8, 10, seed=5)
    stream = PooledMemory(3, LEVELS)
    with torch.no_grad():
        frames = list(memory.unbind(2))
        key, value = (
            torch.stack([project(frame) for frame in frames], 2)
            for project in (stage.f_key, stage.f_value)
        )
        context = by_hand(stage.f_query(x), anchors(key, LEVELS), anchors(value, LEVELS), 0.25)
        expected = block.conv_bn_dropout(torch.cat((stage.W(context), x), 1))
        assert_close(block(x, memory), expected, error=1e-5)
        assert_close(block(x, block.embed(memory)), expected, error=1e-5)
        for frame in frames:
            stream.append(*block.embed(frame))
        assert_close(block(x, stream.read()), expected, error=1e-5)


def test_apnb_has_one_projection_for_key_and_query():
    block = APNB(16, 16, 8, 8)
    stage = block.stage
    assert stage.f_query is stage.f_key
    state = {name: x.clone() for name, x in block.state_dict().items()}
    state["stages.0.f_query.0.bias"] += 1
    block.load_state_dict(state)
    assert torch.equal(stage.f_key[0].bias, state["stages.0.f_query.0.bias"])


def test_ann_blocks_start_as_a_convolution(target: Target):
    low, high = image(target, 2, 16, 9, 13), image(target, 2, 24, 5, 6, seed=3)
    fused = AFNB(16, 24, 24, 8, 8).to(target.device).eval()
    assert_close(fused(low, high), fused(0 * low, high), error=0.0)


def test_afnb_step_by_step(target: Target):
    block = filled(target, AFNB(32, 48, 40, 16, 24), "AFNB")
    stage = block.stage
    low, high = image(target, 2, 32, 9, 13), image(target, 2, 48, 5, 7, seed=3)
    with torch.no_grad():
        key, value = (
            anchors(stage.f_key(low), block.sizes),
            anchors(stage.f_value(low), block.sizes),
        )
        context = stage.W(by_hand(stage.f_query(high), key, value, 0.25))
        projected = block.conv_bn_dropout[0](torch.cat((context, high), 1))
        expected = block.conv_bn_dropout[1](projected)
        assert expected.min() < 0, "there is no rectification at the end"
        assert_close(block(low, high), expected, error=1e-5)


@pytest.mark.parametrize("recurrence", [1, 2])
def test_criss_cross_module_reaches_every_pixel_the_second_time(target: Target, recurrence):
    module = filled(target, CrissCrossAttention(16, recurrence), "CrissCrossAttention")
    x = image(target, 1, 16, 6, 7).requires_grad_()
    output = module(x)
    expected = x
    for _ in range(recurrence):
        read = criss_cross_attention(
            module.query_conv(expected), module.key_conv(expected), module.value_conv(expected)
        )
        expected = module.gamma * read + expected
    assert_close(output, expected, error=1e-6)
    (gradient,) = torch.autograd.grad(output[0, :, 2, 3].sum(), x)
    reached = gradient[0].abs().sum(0) > 0
    assert int(reached.sum()) == (6 + 7 - 1 if recurrence == 1 else 6 * 7)


def test_channel_attention_is_the_published_one():
    module = ChannelAttention()
    assert {name: tuple(x.shape) for name, x in module.state_dict().items()} == {"gamma": (1,)}
    x = Maker().features(2, 12, 5, 6)
    assert torch.equal(module(x), x)
    nn.init.constant_(module.gamma, 0.7)
    energy = torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2))
    energy = energy.max(-1, keepdim=True).values.expand_as(energy) - energy
    expected = 0.7 * torch.bmm(energy.softmax(-1), x.flatten(2)).view_as(x) + x
    assert_close(module(x), expected, error=1e-6)


MODULES = {
    "APNB": (lambda: APNB(16, 24, 8, 12), [(2, 16, 9, 11)]),
    "APNB, memory": (
        lambda: APNB(16, 24, 8, 12, sizes=((1, 1, 1), (2, 3, 3))),
        [(2, 16, 9, 11), (2, 16, 3, 9, 11)],
    ),
    "AFNB": (lambda: AFNB(16, 24, 24, 8, 12), [(2, 16, 9, 11), (2, 24, 5, 6)]),
    "criss-cross": (lambda: CrissCrossAttention(16, 2), [(2, 16, 5, 6)]),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_train_compile_and_export(target: Target, name):
    make, shapes = MODULES[name]
    module = make().to(target.device)
    given = [image(target, *shape, seed=i) for i, shape in enumerate(shapes)]
    for parameter in (p for n, p in module.named_parameters() if n.endswith(("gamma", "W.weight"))):
        nn.init.normal_(parameter)  # away from zero, where what is before it gets no gradient
    module(*given).square().mean().backward()
    for parameter, value in module.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), parameter
    module.eval()
    with torch.no_grad():
        expected = module(*given)
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_close(compiled(*given), expected, error=1e-6)
        exported = torch.export.export(module, tuple(given)).module()
        assert_close(exported(*given), expected, error=1e-6)
        with torch.autocast(target.device, dtype=torch.bfloat16):
            half = module(*given)
    assert_close(half.float(), expected, error=0.1)


def test_modules_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="channels: expected a whole number from 8 on, got int 4"):
        CrissCrossAttention(4)
    with pytest.raises(ValueError, match="recurrence: "):
        CrissCrossAttention(16, 0)
    with pytest.raises(ValueError, match=r"x: expected a \[N, 16, H, W\] tensor"):
        APNB(16, 16, 8, 8)(torch.zeros(1, 8, 4, 4))
    with pytest.raises(ValueError, match=r"x: expected a \[N, 16, T, H, W\] tensor"):
        APNB(16, 16, 8, 8)(torch.zeros(1, 16, 4, 4), torch.zeros(1, 8, 2, 4, 4))
    with pytest.raises(ValueError, match=r"high: expected a \[1, 24, H, W\] tensor"):
        AFNB(16, 24, 24, 8, 8)(torch.zeros(1, 16, 4, 4), torch.zeros(1, 16, 4, 4))
    memory = TemporalMemoryAttention()
    query, value, frames = (
        torch.zeros(1, 4, 5, 6),
        torch.zeros(1, 7, 5, 6),
        torch.zeros(2, 1, 4, 5, 6),
    )
    with pytest.raises(ValueError, match=r"memory_values: expected a \[2, 1, 7, 5, 6\] tensor"):
        memory(frames, frames, query, value)
