"""Write the small weights that ship with the project, from runs of the recipes for streets.

    vsegops train sfnet_lite_streets && vsegops train gsvnet_streets
    vsegops train twnet_keyframe_streets && vsegops train twnet_streets
    python tools/ship_weights.py            # of runs/, to models/shipped_weights/

They are kept in half precision. GSVNet's network for key frames is SFNet-Lite's, and kept once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vsegops.models.shipped import FOLDER
from vsegops.models.training import checkpoint

#: The recipe whose run each file comes from, and what its entries do not begin with.
FILES = {
    "sfnet_lite.pt": ("sfnet_lite_streets", ()),
    "gsvnet.pt": ("gsvnet_streets", ("keyframe.",)),
    "twnet.pt": ("twnet_streets", ()),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"))
    runs = parser.parse_args().runs
    FOLDER.mkdir(exist_ok=True)
    for file, (recipe, left_out) in FILES.items():
        state = checkpoint.read(runs / recipe / checkpoint.WEIGHTS)["state_dict"]
        kept = {
            name: x.half() if x.is_floating_point() else x
            for name, x in state.items()
            if not name.startswith(left_out)
        }
        torch.save({"state_dict": kept}, FOLDER / file)
        print(f"{FOLDER / file}: {(FOLDER / file).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
