"""The examples of every public name run and print what they say; the guides' code runs."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import vsegops
from vsegops._spec import specs

MODULES = [
    importlib.import_module(name)
    for name in ("vsegops", "vsegops.nn", "vsegops.models")
    if importlib.util.find_spec(name)  # (modules come with the families that need them)
]
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in getattr(module, "__all__", ())
    if callable(getattr(module, name))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_examples(name):
    value = PUBLIC[name]
    found = [t for t in doctest.DocTestFinder(recurse=False).find(value, name) if t.examples]
    for test in found:
        said: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
        assert not failed, "".join(said)
    assert found or inspect.isclass(value), f"{name} has no example"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_is_documented(name):
    value = PUBLIC[name]
    assert value.__doc__, f"{name} has no docstring"
    if inspect.isfunction(value):
        missing = [p for p in inspect.signature(value).parameters if p not in value.__doc__]
        assert not missing, f"{name} does not say what {', '.join(missing)} is"


def test_every_operator_is_public():
    for spec in specs():
        assert getattr(vsegops, spec.name) is spec.function
        assert spec.name in vsegops.__all__


DOCS = Path(__file__).parent.parent / "docs"
GUIDES = {
    page.stem: re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for page in sorted(DOCS.glob("*.md"))
}


@pytest.mark.parametrize("name", [name for name, blocks in GUIDES.items() if blocks])
def test_guides(name, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, and its assertions hold."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": name}
    for block in GUIDES[name]:
        exec(compile(block, name, "exec"), namespace)


def test_guides_have_code():
    assert GUIDES["flow-align"]
