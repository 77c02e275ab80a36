"""GSVNet (Lee et al., ICME 2021): logits of key frames, propagated in the space of logits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vsegops._checks import check_option, check_tensor, error
from vsegops.nn import GuidedSpatiallyVaryingConv

from .base import IMAGENET, Model, Motion, Preprocess, VideoModel
from .flow_networks import FlowLight, FlowNetS
from .registry import create_model, register
from .weights import entries, load_upstream

FLOW_NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"light": FlowLight, "flownets": FlowNetS}

#: Pixels at 1/8 per unit of flow.
SCALE = 0.25


class State(NamedTuple):
    """What a step needs of the frame before.

    Attributes:
        logits: `[N, num_classes, h, w]`.
        image: that frame at the same size.
    """

    logits: Tensor
    image: Tensor


class GSVNet(VideoModel):
    """GSVNet: any network segments key frames; a light one carries its logits to those between.

    Paper: "GSVNet: Guided Spatially-Varying Convolution for Fast Semantic Segmentation on Video"
    (ICME 2021), tables 1 to 3 (Ours-SN-R18, Ours-BN-R18); with `flow_network="flownets"` figure 3
    (Ours-FlowNet). Everything but the key frames' network works at 1/8, on `H // 8` x `W // 8`
    pixels; a key frame's logits are resized to that as well. A small network estimates the flow, or
    (`flow_network="codec"`, not in the paper) the codec's motion vectors are the flow, where the
    codec has some. Its operators are `label_edges` and `guided_filter`, which warps on the way,
    in `vsegops.nn.GuidedSpatiallyVaryingConv`; `labels` runs `upsample_argmax`.

    Published is one file for the propagation and another for the key frames' network. Either loads,
    in any order, and leaves alone what is published in the other, by `load_upstream(model, path)`
    or `create_model(..., weights=path, keyframe_weights=path)`. Here `grm.` is the filter (as in
    the file), `flow.` the flow network, `keyframe.` the key frames' network, which is frozen and
    always in evaluation mode.

    Args:
        keyframe: the network for key frames: a name for `create_model`, or a module that maps
            images `[N, 3, H, W]` to logits at any stride. One that is no `Model` is given RGB with
            ImageNet's normalisation.
        num_classes: channels of the logits.
        variant: of the filter, `"published"` or `"paper"`; see `GuidedSpatiallyVaryingConv`.
        flow_network: `"light"`, `"flownets"` (the ablation), or `"codec"`: no network, `motion` is
            used instead; a published file's network is then left out.
        intra, window: of the filter; see there.
        learn_delays: its delays are kernels that training changes.
        keyframe_scale: key frames are reduced to this part of their size; not in training.
        keyframe_weights: a published file for the key frames' network, or None.
    """

    align_corners = True
    stride = 8
    schedule = "every:4"
    separate_files = (("grm.", "flow."), ("keyframe.",))

    def __init__(
        self,
        keyframe: str | nn.Module,
        num_classes: int = 19,
        *,
        variant: str = "published",
        flow_network: str = "light",
        intra: bool = True,
        window: int = 3,
        learn_delays: bool = False,
        keyframe_scale: float = 0.75,
        keyframe_weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_option("flow_network", flow_network, (*FLOW_NETWORKS, "codec"))
        if not 0 < keyframe_scale <= 1:
            raise error("keyframe_scale", "more than 0 and up to 1", keyframe_scale)
        if isinstance(keyframe, str):
            keyframe = create_model(keyframe, num_classes)
        if keyframe_weights is not None:
            load_upstream(keyframe, keyframe_weights)
        own = keyframe.preprocess if isinstance(keyframe, Model) else IMAGENET
        self.num_classes, self.keyframe_scale = num_classes, keyframe_scale
        self.preprocess, self._keyframe_order = _bgr(own), own.channels
        self.grm = GuidedSpatiallyVaryingConv(
            num_classes, variant, intra=intra, window=window, scale=SCALE
        )
        self.grm.ideal_dk.requires_grad_(learn_delays)
        by_codec = flow_network == "codec"
        self.flow = None if by_codec else FLOW_NETWORKS[flow_network]()
        self.motion_stride = 8 if by_codec else None
        self.keyframe = keyframe.eval().requires_grad_(False)
        unused = getattr(keyframe, "unused_prefixes", ())
        self.unused_prefixes = tuple(f"keyframe.{prefix}" for prefix in unused)
        self.unused_prefixes += ("flow.",) if by_codec else ()

    def start(self, frame: Tensor) -> tuple[Tensor, State]:
        image = _eighth(frame)
        if self.keyframe_scale != 1 and not self.training:
            # In this order, as published: 1025 becomes 768.
            scaled = [int(length // 4 * (4 * self.keyframe_scale)) for length in frame.shape[2:]]
            frame = _resize(frame, scaled)
        if self._keyframe_order == "RGB":
            frame = frame.flip(1)
        logits = _resize(self.keyframe(frame), image.shape[2:])
        return logits, State(logits, image)

    def step(
        self, frame: Tensor, state: State, motion: Motion | None = None
    ) -> tuple[Tensor, State]:
        image = _eighth(frame)
        check_tensor("state.image", state.image, image.shape, like=image)
        if self.flow is None:
            height, width = image.shape[2:]  # a border of less than 8 pixels has no cell here
            flow = self.check_motion(frame, motion).flow[:, :, :height, :width] / SCALE
        else:
            flow = _resize(self.flow(image, state.image), image.shape[2:])
        logits = self.grm(state.logits, image, flow)
        return logits, State(logits, image)

    def disagreement(self, logits: Tensor, state: State) -> Tensor:
        if self.grm.intra_net is None:
            return super().disagreement(logits, state)
        intra: Tensor = self.grm.intra_net(state.image)
        return (intra.argmax(1) != logits.argmax(1)).float().mean()

    def train(self, mode: bool = True) -> GSVNet:
        super().train(mode)
        self.keyframe.eval()
        return self

    def upstream_state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        if "state_dict_of" in checkpoint:
            flow = entries(checkpoint["state_dict_of"])
            return entries(checkpoint) | {f"flow.{name}": x for name, x in flow.items()}
        found = entries(checkpoint)
        if any(name.startswith(("grm.", "flow.", "keyframe.")) for name in found):
            return found
        read = getattr(self.keyframe, "upstream_state", entries)
        return {f"keyframe.{name}": x for name, x in read(checkpoint).items()}


def _bgr(preprocess: Preprocess) -> Preprocess:
    if preprocess.channels == "BGR":
        return preprocess
    (r, g, b), (sr, sg, sb) = preprocess.mean, preprocess.std
    return replace(preprocess, mean=(b, g, r), std=(sb, sg, sr), channels="BGR")


def _eighth(frame: Tensor) -> Tensor:
    check_tensor("frame", frame, ("N", 3, "H", "W"))
    size = [length // 8 for length in frame.shape[2:]]
    if min(size) < 1:
        raise error("frame", "at least 8 x 8 pixels", frame)
    return _resize(frame, size)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


for _keyframe in ("swiftnet_resnet18", "bisenet_resnet18", "sfnet_lite_resnet18"):
    register(f"gsvnet_{_keyframe}", GSVNet, keyframe=_keyframe)
_keyframe = "sfnet_lite_resnet18_x0_25"  # small enough as it is
register(f"gsvnet_{_keyframe}", GSVNet, keyframe=_keyframe, keyframe_scale=1.0)
