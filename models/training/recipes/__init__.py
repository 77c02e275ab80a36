"""The recipes that ship: small ones on the generated world, and the papers' on their data.

Those on streets take ten minutes at most on one core of a CPU. Those on Cityscapes expect its
folder in `data.root`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..recipe import Recipe
from . import gsvnet, sfnet, tmanet, twnet

RECIPES: Mapping[str, Recipe] = {
    **sfnet.RECIPES,
    **gsvnet.RECIPES,
    **twnet.RECIPES,
    **tmanet.RECIPES,
}
