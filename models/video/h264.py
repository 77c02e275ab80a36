"""The one fact about an H.264 stream that its decoder keeps to itself: how far back it refers."""

from __future__ import annotations

#: Profiles whose sequence parameter set carries a chroma format and scaling lists.
_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_SPS = 7


def reference_frames(extradata: bytes | None) -> int | None:
    """How many earlier frames a frame may refer to: `max_num_ref_frames`, the largest announced.

    Args:
        extradata: the decoder configuration as the container stores it: an `avcC` record (MP4,
            Matroska, FLV) or start codes (MPEG-TS, AVI, raw streams).

    Returns:
        A number from 0, or None where there is no readable sequence parameter set.

    Example:
        >>> reference_frames(b"") is None
        True
    """
    try:
        return max(
            (_max_num_ref_frames(unit) for unit in _parameter_sets(extradata or b"")), default=None
        )
    except IndexError:  # cut short
        return None


def _parameter_sets(extradata: bytes) -> list[bytes]:
    """The sequence parameter sets, without the byte that names their type."""
    if extradata[:1] == b"\x01":  # avcC: count, then a length of 16 bits before each
        units, at = [], 6
        for _ in range(extradata[5] & 31):
            length = int.from_bytes(extradata[at : at + 2], "big")
            units.append(extradata[at + 2 : at + 2 + length])
            at += 2 + length
    else:
        units = extradata.split(b"\x00\x00\x01")[1:]
    return [unit[1:] for unit in units if unit and unit[0] & 31 == _SPS]


class _Bits:
    """Reads bits from the front; IndexError past the end."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\x00\x00\x03", b"\x00\x00")  # emulation prevention
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def take(self, count: int) -> int:
        if self._at + count > len(self._bits):
            raise IndexError
        self._at += count
        return int(self._bits[self._at - count : self._at] or "0", 2)

    def unsigned(self) -> int:
        """Exponential-Golomb: as many zeros as there are bits after the first one."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _max_num_ref_frames(sps: bytes) -> int:
    """The fields of ITU-T H.264, 7.3.2.1.1, in their order."""
    bits = _Bits(sps)
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.unsigned()  # seq_parameter_set_id
    if profile in _HIGH_PROFILES:
        chroma_format = bits.unsigned()
        if chroma_format == 3:
            bits.take(1)  # separate_colour_plane_flag
        bits.unsigned(), bits.unsigned()  # bit depths
        bits.take(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.take(1):
            for index in range(12 if chroma_format == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.unsigned()  # log2_max_frame_num_minus4
    order = bits.unsigned()  # pic_order_cnt_type
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.take(1)
        bits.signed(), bits.signed()
        for _ in range(bits.unsigned()):
            bits.signed()
    return bits.unsigned()


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last
