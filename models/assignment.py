"""`NAME=VALUE`, as command lines have it."""

from __future__ import annotations

import ast
from typing import Any


def parse_assignment(text: str) -> tuple[str, Any]:
    """The name, and the value: a Python literal (`true`, `false`, `none` too), else a word.

    Example:
        >>> parse_assignment("layer=2"), parse_assignment("attention=apnb")
        (('layer', 2), ('attention', 'apnb'))
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"expected NAME=VALUE, got {text!r}")
    try:
        literal = value.title() if value in ("true", "false", "none") else value
        return name, ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        return name, value
