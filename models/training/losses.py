"""What the papers minimise. Cross-entropies are taken at the labels' size, in one pass
(`vsegops.upsample_cross_entropy`).

Outputs are what models give: logits, or in training with deep supervision a pair of logits and a
list of auxiliary ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsegops import upsample_cross_entropy
from vsegops._checks import check_option, check_tensor, error
from vsegops.nn import OhemUpsampleCrossEntropyLoss

from ..gsvnet import GSVNet

#: GSVNet's weights of Cityscapes' classes.
CITYSCAPES_WEIGHTS = (
    *(3.03871497, 13.01999212, 4.53008444, 38.00898985, 35.35990217, 31.14247824, 45.82106668),
    *(39.44451896, 6.00002668, 32.64759009, 17.34725897, 31.45715227, 47.0853521, 11.70166965),
    *(44.50966853, 44.80501487, 45.63057065, 48.21080448, 41.21912833),
)
#: GSVNet's weights of CamVid's 11 classes, in the order of `classes.CAMVID`.
CAMVID_WEIGHTS = (
    *(6.088367253290739, 4.519555764402027, 33.97442457184865, 3.892793490946617),
    *(12.472488354029295, 8.53161322681152, 47.70112012347462, 29.66528556102586),
    *(18.998198498821438, 38.38783950878698, 40.105909294306784),
)


class DeepSupervision(nn.Module):
    """The loss of the output, plus a weight times the sum of those of the auxiliary outputs.

    Args:
        loss: of logits and labels.
        weight: of the auxiliary outputs.

    Example:
        >>> loss = DeepSupervision(OhemUpsampleCrossEntropyLoss(min_kept=10), weight=1.0)
        >>> logits = torch.randn(1, 19, 4, 8)
        >>> output = (logits, [torch.randn(1, 19, 2, 4)])
        >>> loss(output, torch.zeros(1, 16, 32, dtype=torch.uint8)).shape
        torch.Size([])
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], weight: float) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight

    def forward(self, output: Any, labels: Tensor) -> Tensor:
        logits, others = output if isinstance(output, tuple) else (output, [])
        total = self.loss(logits, labels)
        for other in others:
            total = total + self.weight * self.loss(other, labels)
        return total


def sfnet(
    *, published: bool = True, min_kept: int = 100_000, auxiliary: float = 1.0
) -> DeepSupervision:
    """SFNet's: the hardest pixels alone.

    Args:
        published: as the published code chooses them: those whose class has a probability of up to
            0.7, and `min_kept` at least; False: the paper's hardest 10 %.
        min_kept: 100 000 in the published scripts with auxiliary outputs or of SFNet-Lite, 10 000
            in the others; of crops of 1024 x 1024, two on a GPU.
        auxiliary: the weight of the auxiliary outputs.
    """
    fraction = None if published else 0.1
    hardest = OhemUpsampleCrossEntropyLoss(0.7, min_kept, fraction=fraction, align_corners=True)
    return DeepSupervision(hardest, auxiliary)


def tmanet(*, align_corners: bool = False, auxiliary: float = 0.4) -> DeepSupervision:
    """TMANet's: the cross-entropy over all pixels; ignored ones count, with a loss of 0.

    Args:
        align_corners: False for CamVid, True for Cityscapes, as the model.
        auxiliary: the weight of the auxiliary head.
    """

    def mean(logits: Tensor, labels: Tensor) -> Tensor:
        total = upsample_cross_entropy(logits, labels, align_corners=align_corners, reduction="sum")
        return total / labels.numel()

    return DeepSupervision(mean, auxiliary)


class TWNetLoss(nn.Module):
    """`L_cls + lambda1 * L_consist` of TWNet's second step.

    L_consist is the mean square difference of the carried features to those that the network for
    key frames has for the same frame. (lambda0, 1e-7, is the optimiser's weight decay.)

    Args:
        consistency: lambda1.

    Calling it:
        logits, state: of the second frame, from `model.step`.
        labels: `[N, H, W]`, of the second frame.
        wanted: the state from `model.start` for the second frame; no gradient goes there.
    """

    def __init__(self, consistency: float = 10.0) -> None:
        super().__init__()
        self.consistency = consistency

    def forward(self, logits: Tensor, state: Any, labels: Tensor, wanted: Any) -> Tensor:
        classified = upsample_cross_entropy(logits, labels)
        target = wanted.features.detach().to(state.features.dtype)
        return classified + self.consistency * F.mse_loss(state.features, target)


class GSVNetLoss(nn.Module):
    """GSVNet's: of the last frame of an interval, see `unrolled`.

    Args:
        variant: `"published"`: `10 * (CE + 10 * KL)`, weighted by classes, with the network for key
            frames as the teacher; `"paper"`: CE.
        weight: `[num_classes]`, of the published variant, or None.

    Calling it:
        logits: of the last frame.
        labels: `[N, H, W]`.
        teacher: the teacher's logits of that frame, for the published variant.
    """

    weight: Tensor | None

    def __init__(
        self, variant: str = "published", weight: Sequence[float] | None = CITYSCAPES_WEIGHTS
    ) -> None:
        super().__init__()
        check_option("variant", variant, ("published", "paper"))
        self.variant = variant
        weighted = weight is not None and variant == "published"
        self.register_buffer("weight", torch.tensor(weight) if weighted else None)

    def forward(self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        entropy = upsample_cross_entropy(logits, labels, weight=self.weight, align_corners=True)
        if self.variant == "paper":
            return entropy
        if teacher is None:
            raise error("teacher", "its logits, for the published variant", None)
        divergence = distillation(
            logits, teacher, (labels.shape[1], labels.shape[2]), align_corners=True
        )
        # Published as the mean over all elements, classes included.
        return 10 * (entropy + 10 * divergence / logits.shape[1])


def unrolled(
    model: GSVNet, frames: Sequence[Tensor], *, gradient_steps: int = 2
) -> tuple[Tensor, Tensor]:
    """The logits of the last of several frames, the first of which is the key frame.

    As published, a gradient goes through the last steps alone. In earlier ones the filter is in
    evaluation mode, so that its statistics follow the last ones only; the flow's network is not.

    Args:
        model: in training mode.
        frames: preprocessed, `[N, 3, H, W]` each, at least two.
        gradient_steps: how many steps are differentiated; as many as there are: end to end, as the
            paper says.

    Returns:
        logits: of the last frame.
        teacher: those of the network for key frames, of the same frame.
    """
    if len(frames) < 2:
        raise error("frames", "at least two", len(frames))
    mode = model.grm.training
    with torch.no_grad():
        _, state = model.start(frames[0])
        teacher, _ = model.start(frames[-1])
    logits = state.logits
    for number, frame in enumerate(frames[1:], 1):
        counted = number >= len(frames) - gradient_steps
        model.grm.train(mode and counted)
        with nullcontext() if counted else torch.no_grad():
            logits, state = model.step(frame, state)
    model.grm.train(mode)
    return logits, teacher


def distillation(
    logits: Tensor,
    teacher: Tensor,
    size: tuple[int, int],
    *,
    temperature: float = 1.0,
    align_corners: bool = False,
) -> Tensor:
    """The divergence of a student from its teacher: KL(teacher || student), the mean over pixels.

    Args:
        logits: the student's, `[N, C, h, w]`.
        teacher: `[N, C, h', w']`; no gradient goes there.
        size: at which they are compared.
        temperature: T; of logits / T, times T squared, so that gradients keep their size.
        align_corners: of enlarging both.

    Example:
        >>> logits = torch.randn(1, 19, 4, 8)
        >>> distillation(logits, logits, (16, 32)).abs().item() < 1e-6
        True
    """
    check_tensor("logits", logits, ("N", "C", "h", "w"))
    check_tensor("teacher", teacher, (logits.shape[0], logits.shape[1], "h", "w"), like=logits)
    student, wanted = (
        F.interpolate(x.float() / temperature, size, mode="bilinear", align_corners=align_corners)
        for x in (logits, teacher.detach())
    )
    divergence = F.kl_div(
        student.log_softmax(1), wanted.log_softmax(1), reduction="sum", log_target=True
    )
    return divergence * temperature**2 / (len(logits) * size[0] * size[1])


class OnnxTeacher:
    """An ONNX file as a teacher: images `[N, 3, H, W]` to its first output, logits `[N, C, h, w]`.

    Args:
        path: of the file; it has one input.
        preprocess: of what it is given; None: the student's images as they are.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(os.fspath(path))
        self._input = self._session.get_inputs()[0].name
        self._preprocess = preprocess

    def __call__(self, images: Tensor) -> Tensor:
        given = images if self._preprocess is None else self._preprocess(images)
        feed = {self._input: given.detach().float().cpu().contiguous().numpy()}
        return torch.from_numpy(self._session.run(None, feed)[0]).to(images.device)
