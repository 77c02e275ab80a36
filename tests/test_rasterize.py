"""Motion vectors to flow: the rasteriser against its definition, and against absurd input."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av", reason="PyAV is not installed")

from vsegops.models.video import rasterize  # noqa: E402

#: As PyAV has it, except for what libavutil is free to change: the order and the padding.
VECTOR = np.dtype(
    [
        ("source", "<i4"),
        ("w", "u1"),
        ("h", "u1"),
        ("src_x", "<i2"),
        ("src_y", "<i2"),
        ("dst_x", "<i2"),
        ("dst_y", "<i2"),
        ("flags", "<u8"),
        ("motion_x", "<i4"),
        ("motion_y", "<i4"),
        ("motion_scale", "<u2"),
    ],
    align=True,
)


def vectors(*blocks: tuple[int, ...], dtype: np.dtype[Any] = VECTOR) -> np.ndarray[Any, Any]:
    """Rows of (dst_x, dst_y, w, h, motion_x, motion_y, motion_scale)."""
    array = np.zeros(len(blocks), dtype)
    array["source"] = -1
    names = ("dst_x", "dst_y", "w", "h", "motion_x", "motion_y", "motion_scale")
    for row, block in enumerate(blocks):
        for name, value in zip(names, block, strict=True):
            array[name][row] = value
    return array


def rasterize_slowly(
    array: np.ndarray[Any, Any], height: int, width: int, stride: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The definition: paint every pixel, then average every cell."""
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    for row in array:
        left, top = int(row["dst_x"]) - int(row["w"]) // 2, int(row["dst_y"]) - int(row["h"]) // 2
        for y in range(max(top, 0), min(top + int(row["h"]), height)):
            for x in range(max(left, 0), min(left + int(row["w"]), width)):
                scale = int(row["motion_scale"])
                total[:, y, x] += int(row["motion_x"]) / scale, int(row["motion_y"]) / scale
                count[y, x] += 1
    rows, columns = -(-height // stride), -(-width // stride)
    flow, mask = np.zeros((2, rows, columns)), np.zeros((rows, columns), bool)
    for i, j in itertools.product(range(rows), range(columns)):
        cell = np.s_[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
        covered = count[cell].sum()
        mask[i, j] = covered >= count[cell].size / 2
        if covered:
            flow[:, i, j] = total[(slice(None), *cell)].sum((1, 2)) / covered / stride
    return flow, mask


blocks = st.tuples(
    st.integers(-30, 80),
    st.integers(-30, 80),
    st.sampled_from([1, 4, 5, 8, 16, 255]),
    st.sampled_from([1, 4, 7, 8, 16, 255]),
    st.integers(-300, 300),
    st.integers(-300, 300),
    st.sampled_from([1, 2, 4]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(blocks, max_size=8),
    st.integers(1, 49),
    st.integers(1, 53),
    st.sampled_from([1, 2, 3, 4, 8, 16, 100]),
)
def test_rasterize_agrees_with_its_definition(
    rows: list[tuple[int, ...]], height: int, width: int, stride: int
) -> None:
    array = vectors(*rows)
    flow, mask = rasterize(array, height, width, stride=stride)
    truth, valid = rasterize_slowly(array, height, width, stride)
    assert flow.dtype == torch.float32 and mask.dtype == torch.bool
    np.testing.assert_allclose(flow, truth, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(mask, valid)


def test_rasterize_places_a_block_around_its_centre() -> None:
    flow, mask = rasterize(vectors((8, 24, 16, 16, 3, -1, 2)), 40, 20)
    assert mask[16:32, :16].all() and mask.sum() == 256
    assert flow[:, 16:32, :16].flatten(1).unique(dim=1).tolist() == [[1.5], [-0.5]]
    assert not flow[:, ~mask].any()


def test_mask_at_a_stride_asks_for_half_of_the_cell() -> None:
    half, less = vectors((4, 8, 8, 16, 4, 0, 2)), vectors((4, 8, 7, 16, 4, 0, 2))
    assert rasterize(half, 16, 16, stride=16)[1].tolist() == [[True]]
    flow, mask = rasterize(less, 16, 16, stride=16)
    assert mask.tolist() == [[False]]
    assert flow[0].item() == 2 / 16  # the mean over what is covered, whatever the mask says
    assert rasterize(less, 16, 14, stride=16)[1].tolist() == [[True]]  # half of what the frame has


@pytest.mark.parametrize("nothing", [None, vectors(), np.zeros(0)])
def test_rasterize_without_vectors_is_all_invalid(nothing: np.ndarray[Any, Any] | None) -> None:
    flow, mask = rasterize(nothing, 5, 7, stride=4)
    assert flow.shape == (2, 2, 2) and not flow.any() and not mask.any()


def test_rasterize_reads_fields_by_name_at_any_width_and_step() -> None:
    names = ["motion_scale", "motion_y", "motion_x", "dst_y", "dst_x", "h", "w", "source"]
    block = (10, 9, 8, 16, 5, -7, 4)
    truth = rasterize(vectors(block), 21, 22)
    for kind in ("<i8", "<i2", "<i4"):
        other = vectors(block, block, dtype=np.dtype([("x", "u1"), *((n, kind) for n in names)]))
        for got, expected in zip(rasterize(other[::-2], 21, 22), truth, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [("motion_scale", 0), ("motion_scale", -4), ("w", 0), ("w", -16), ("h", -1), ("source", 1)],
)
def test_rasterize_refuses_absurd_values_by_name(name: str, value: int) -> None:
    wide = np.dtype([(field, "<i8") for field in VECTOR.names or ()])
    array = vectors((8, 8, 16, 16, 0, 0, 2), (8, 8, 16, 16, 0, 0, 2), dtype=wide)
    array[name][1] = value
    with pytest.raises(ValueError, match=rf"vectors\['{name}'\]\[1\]: expected .*got {value}"):
        rasterize(array, 32, 32)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([1, 3, 16]))
def test_rasterize_survives_any_bytes(data: st.DataObject, stride: int) -> None:
    kind = data.draw(st.sampled_from(["<i8", "<u8", "<i4", "<u2", "u1"]))
    dtype = np.dtype([(name, kind) for name in VECTOR.names or ()])
    raw = data.draw(st.binary(min_size=dtype.itemsize, max_size=4 * dtype.itemsize))
    array = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype).copy()
    if dtype["source"].kind == "i":  # let some of them past the checks
        array["source"] = -1
        for name in ("w", "h", "motion_scale"):
            array[name] = np.maximum(array[name], 1)
    try:
        flow, _ = rasterize(array, 17, 19, stride=stride)
    except ValueError as error:
        assert "vectors['" in str(error)
    else:
        assert flow.isfinite().all()


def test_rasterize_refuses_other_arrays() -> None:
    good = vectors((8, 8, 16, 16, 0, 0, 2))
    floats = good.astype([(name, "<f4") for name in VECTOR.names or ()])
    swapped = good.astype([(name, ">i4") for name in VECTOR.names or ()])
    for bad, message in [
        (np.zeros(3), "structured array"),
        (good[["source", "w", "h"]], "field 'dst_x'"),
        (floats, "expected integers .*'source'.*float32"),
        (swapped, "native byte order"),
        (good.reshape(1, 1), "one dimension, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            rasterize(bad, 16, 16)
    with pytest.raises(TypeError, match="vectors: expected a NumPy array"):
        rasterize([1], 16, 16)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["height", "width", "stride"])
def test_rasterize_refuses_sizes(name: str) -> None:
    sizes = {"height": 8, "width": 8, "stride": 1}
    for value in (0, -1, 2**31, 2**70):
        with pytest.raises(ValueError, match=f"{name}: expected .*got {value}"):
            rasterize(None, **{**sizes, name: value})
    with pytest.raises(TypeError, match=f"{name}: expected an integer"):
        rasterize(None, **{**sizes, name: 2.0})
