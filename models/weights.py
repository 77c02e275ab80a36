"""Published checkpoints, loaded strictly."""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vsegops._checks import describe

#: What published files hold beside tensors: results such as `mean_iu`, as NumPy scalars (files of
#: NumPy 1 and 2 name the function that makes them differently), and GSVNet's its command line.
_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    Namespace,
    np.dtype,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(name)) for name in ("f8", "f4", "f2", "i8", "i4", "i2", "u1", "?")),
]

#: Where a file keeps its entries, if they are not the file itself.
_KEYS = ("state_dict", "model")


class Loaded(NamedTuple):
    """What `load_upstream` left alone.

    Attributes:
        unused: entries of the file that inference never uses and this model does not have.
        initial: entries of this model that the file does not have: inference never uses them, or
            they are published in another file (GSVNet's key frames' network).
    """

    unused: tuple[str, ...]
    initial: tuple[str, ...]


def load_upstream(model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any]) -> Loaded:
    """Load a published checkpoint, all of it or nothing.

    Understood are files of SFSegNets, GSVNet, torchvision's backbones and others (see the model's
    own documentation), entries wrapped in `{"state_dict": ...}` or `{"model": ...}`, the prefix
    `module.` of data-parallel training, names that are listed twice (STDC), and files older than
    `num_batches_tracked`. Auxiliary heads, classifiers of backbones and whatever else inference
    never uses may be in the file, or in the model, alone. Everything else has to fit.

    A checkpoint of SFNet from before July 2022 may want `create_model(...,
    warp_align_corners=False)`: nothing in the file tells.

    Args:
        model: a model, or a backbone.
        source: a file, opened with `weights_only=True`, or what was in it.

    Returns:
        The names of what was left alone.

    Raises:
        ValueError: entries are missing, unexpected or of another shape; the message names each, and
            the model is as it was.

    Example:
        >>> from vsegops.models import load_upstream
        >>> from vsegops.models.backbones import ResNet
        >>> published = {f"module.{name}": x for name, x in ResNet(18).state_dict().items()}
        >>> load_upstream(ResNet(18), {"state_dict": published})
        Loaded(unused=(), initial=())
    """
    checkpoint = source if isinstance(source, Mapping) else _open(source)
    read = getattr(model, "upstream_state", entries)
    published, optional = read(checkpoint), tuple(getattr(model, "unused_prefixes", ()))
    own = model.state_dict()
    state, twins = dict(published), _twins(model)
    elsewhere = _elsewhere(model, state)

    def is_optional(name: str) -> bool:
        return name.startswith((*optional, *elsewhere)) or name.endswith("num_batches_tracked")

    missing, initial = [], []
    for name in own.keys() - state.keys():
        twin = next((twin for twin in twins.get(name, ()) if twin in state), None)
        if twin is not None:
            state[name] = state[twin]
        elif is_optional(name):
            state[name] = own[name]
            initial.append(name)
        else:
            missing.append(name)
    left = sorted(state.keys() - own.keys())
    unused = [name for name in left if name.startswith(optional)] if optional else []
    problems = [f"missing: {name}" for name in sorted(missing)]
    problems += [f"unexpected: {name}" for name in left if name not in unused]
    for name, x in own.items():
        if name in state and state[name].shape != x.shape:
            shapes = f"expected {list(x.shape)}, got {list(state[name].shape)}"
            problems.append(f"of another shape: {name}, {shapes}")
    if problems:
        what = "\n  ".join(problems)
        raise ValueError(f"source: does not fit {type(model).__name__}:\n  {what}")
    model.load_state_dict({name: state[name] for name in own})
    return Loaded(tuple(unused), tuple(sorted(initial)))


def entries(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries in a checkpoint, without the prefix `module.`."""
    for key in _KEYS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    for name, x in checkpoint.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"source: expected tensors by name, got {describe(x)} as {name!r}")
    prefix = "module."
    if all(name.startswith(prefix) for name in checkpoint):
        checkpoint = {name.removeprefix(prefix): x for name, x in checkpoint.items()}
    return dict(checkpoint)


def _open(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
        # NumPy 2 warns of the old name of a module that NumPy 1's files contain.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"source: expected a file with entries by name, got {describe(checkpoint)}"
        )
    return checkpoint


def _elsewhere(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What those parts of a model begin with that are published in other files than this one."""
    files = getattr(model, "separate_files", ())
    others = [
        prefixes for prefixes in files if not any(name.startswith(prefixes) for name in state)
    ]
    return sum(others, ()) if len(others) < len(files) else ()


def _twins(model: nn.Module) -> dict[str, list[str]]:
    """For each entry that is listed more than once all its names."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        names[id(buffer)].append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}
