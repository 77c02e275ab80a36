"""Backbones: classification networks as pyramids of features, with published parameter names."""

from .dfnet import DFNet
from .layers import Backbone
from .mobilenet_v1 import MobileNetV1
from .mobilenet_v2 import MobileNetV2
from .resnet import ResNet
from .shufflenet_v2 import ShuffleNetV2
from .stdc import STDC

__all__ = ["STDC", "Backbone", "DFNet", "MobileNetV1", "MobileNetV2", "ResNet", "ShuffleNetV2"]
