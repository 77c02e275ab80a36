"""`vsegops clip`: a video to try the others on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import Formatter, UsageError

EXAMPLES = """examples:
  vsegops clip clip.mp4
  vsegops clip short.mp4 --frames 24
  vsegops clip street.mp4 --street 1000      a generated street
"""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "clip",
        help="write a video to try things on",
        description="Write a video of a motorway, or of a generated scene where that cannot be "
        "fetched,\nor of a generated street; with motion for TWNet: MPEG-4 with a key frame every "
        "12 frames.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("output", metavar="OUT.mp4")
    parser.add_argument("--frames", type=int, default=120, metavar="N", help="default: 120")
    parser.add_argument(
        "--street", type=int, metavar="SEED", help="a generated street, of 256x512 pixels"
    )
    parser.set_defaults(do=clip)


def clip(arguments: argparse.Namespace) -> int:
    try:
        from ..training.world import World, write_clip
        from ..video.clips import demo_clip
        from ..video.transcode import transcode
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'vsegops[models]'") from None
    if arguments.frames < 1:
        raise UsageError(f"--frames: expected 1 or more, got {arguments.frames}")
    if arguments.street is not None:
        if arguments.street < 0:
            raise UsageError(f"--street: expected 0 or more, got {arguments.street}")
        final = Path(arguments.output)
        partial = final.with_name(f".partial-{final.name}")
        write_clip(World(arguments.street, length=arguments.frames), partial)
        partial.replace(final)
        print(f"{arguments.output}: street {arguments.street}, {arguments.frames} frames")
        return 0
    found = demo_clip(arguments.frames)
    count = transcode(found.path, arguments.output, frames=arguments.frames)
    print(f"{arguments.output}: {found.title}, {count} frames")
    return 0
