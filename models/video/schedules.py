"""When a frame of a video is a key frame: segmented anew, not from what is known of those before.

The first frame always is, as is one of another size, and one whose motion is missing where the
model needs it; a schedule decides about the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from vsegops._checks import error


class Facts(NamedTuple):
    """What is known about a frame that could go without being a key frame.

    Attributes:
        index: counts the video's frames from 0.
        since: frames since the last key frame; 1 right after it.
        codec_key: the codec has coded it without reference to others; None if no codec is known.
        residual: the mean of what remains unexplained of the frame by the one before, in grey
            levels (0..255): by the codec's motion where it is read, by the same pixel otherwise. 0
            where the schedule does not use it.
        drift: the sum of the residuals since the last key frame, this frame's included.
    """

    index: int  # type: ignore[assignment]
    since: int
    codec_key: bool | None
    residual: float
    drift: float


class Schedule:
    """A rule; it keeps no state, so that any number of videos can follow it at once.

    Attributes:
        uses_codec: it has to know the codec's key frames.
        uses_residual: it has to know residuals.
        disagreement: the share of pixels, from 0 to 1, where propagated labels may differ from the
            model's intra prediction before the frame is redone as a key frame; None: any.
    """

    uses_codec: ClassVar[bool] = False
    uses_residual: ClassVar[bool] = False
    disagreement: float | None = None

    def is_key(self, facts: Facts) -> bool:
        """Whether the frame becomes a key frame."""
        raise NotImplementedError


@dataclass(frozen=True)
class Every(Schedule):
    """Every `interval`-th frame, from the first (GSVNet's l).

    Other key frames do not shift these: a video can be cut at multiples of the interval.
    """

    interval: int

    def __post_init__(self) -> None:
        if isinstance(self.interval, bool) or not isinstance(self.interval, int):
            raise error("interval", "a whole number", self.interval)
        if self.interval < 1:
            raise error("interval", "1 or more", self.interval)

    def is_key(self, facts: Facts) -> bool:
        return facts.index % self.interval == 0


@dataclass(frozen=True)
class CodecKeys(Schedule):
    """The codec's key frames, its I-frames (TWNet)."""

    uses_codec: ClassVar[bool] = True

    def is_key(self, facts: Facts) -> bool:
        return bool(facts.codec_key)


@dataclass(frozen=True)
class PerFrame(Schedule):
    """Every frame by itself."""

    def is_key(self, facts: Facts) -> bool:
        return True


@dataclass(frozen=True)
class FirstOnly(Schedule):
    """No key frame but the first (TMANet, whose memory moves along)."""

    def is_key(self, facts: Facts) -> bool:
        return False


@dataclass(frozen=True)
class Adaptive(Schedule):
    """A key frame where the propagation has become doubtful.

    Args:
        residual: the sum of residuals (see `Facts.drift`) at which there is a new key frame. A cut
            is such a large residual of one frame; None: only cuts.
        disagreement: the share of pixels where the propagated labels differ from the model's intra
            prediction, above which the frame is redone as a key frame; None: not looked at. For
            models that have an intra prediction (GSVNet).
        cut: the residual of one frame at which it is taken for the first of another scene.
        longest: frames from a key frame to the next one at most; None: any number.
    """

    residual: float | None = 24.0
    disagreement: float | None = None
    cut: float = 40.0
    longest: int | None = None
    uses_residual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("residual", "cut"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise error(name, "a number above 0", value)
        if self.disagreement is not None and not 0 <= self.disagreement <= 1:
            raise error("disagreement", "0 to 1", self.disagreement)
        if self.longest is not None and self.longest < 1:
            raise error("longest", "1 or more", self.longest)

    def is_key(self, facts: Facts) -> bool:
        return (
            facts.residual >= self.cut
            or (self.residual is not None and facts.drift >= self.residual)
            or (self.longest is not None and facts.since >= self.longest)
        )


_BY_NAME = {"codec": CodecKeys, "frame": PerFrame, "first": FirstOnly, "adaptive": Adaptive}


def parse_schedule(schedule: str | Schedule) -> Schedule:
    """A schedule by its name: `"every:4"`, `"codec"`, `"frame"`, `"first"` or `"adaptive"`.

    Args:
        schedule: the name; a `Schedule` is given back as it is.

    Raises:
        ValueError: there is no such schedule.

    Example:
        >>> parse_schedule("every:4")
        Every(interval=4)
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str):
        name, _, number = schedule.partition(":")
        if name == "every" and number.isdecimal():
            return Every(int(number))
        if schedule in _BY_NAME:
            return _BY_NAME[schedule]()
    raise error("schedule", f"'every:N', {', '.join(map(repr, _BY_NAME))} or a Schedule", schedule)
