"""DF1 and DF2, the residual backbones of "Partial Order Pruning" (Li et al., CVPR 2019).

Entries have the names that SFNet's published networks use.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .layers import Backbone, conv_bn, run_through
from .resnet import BasicBlock, residual_stage

#: Stages behind the stem: name -> (blocks, width, stride of the first).
STAGES: Mapping[str, Mapping[str, tuple[int, int, int]]] = {
    "df1": {
        "stage2": (3, 64, 2),
        "stage3": (3, 128, 2),
        "stage4": (3, 256, 2),
        "stage5": (1, 512, 1),
    },
    "df2": {
        "stage2_1": (2, 64, 2),
        "stage2_2": (1, 128, 1),
        "stage3_1": (10, 128, 2),
        "stage3_2": (1, 256, 1),
        "stage4_1": (4, 256, 2),
        "stage4_2": (2, 512, 1),
    },
}
#: The stages that are handed on, with their strides. Two of DF1's are at 1/32.
LEVELS: Mapping[str, Mapping[str, int]] = {
    "df1": {"stage3": 16, "stage4": 32, "stage5": 32},
    "df2": {"stage2_2": 8, "stage3_2": 16, "stage4_2": 32},
}


class DFNet(Backbone):
    """DF1 or DF2: levels of 128, 256 and 512 channels, at 1/16, 1/32, 1/32 or 1/8, 1/16, 1/32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*conv_bn(3, 32, 3, 2), *conv_bn(32, 64, 3, 2))
        channels = 64
        for stage, (blocks, width, stride) in STAGES[name].items():
            self.add_module(stage, residual_stage(BasicBlock, channels, width, blocks, stride))
            channels = width
        self._levels = [list(STAGES[name]).index(level) for level in LEVELS[name]]
        self._stages = tuple(STAGES[name])
        self.channels = [STAGES[name][level][1] for level in LEVELS[name]]
        self.strides = list(LEVELS[name].values())

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = [getattr(self, name) for name in self._stages]
        results = run_through(stages, self.stage1(images))
        return [results[level] for level in self._levels]
