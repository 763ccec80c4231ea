"""Installed versions of xlb and its dependencies.

Reads the names of the metadata directories that pip and Debian install with a package. importlib.metadata gives the same
answer, but costs 2 MB of resident memory.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

_SUFFIXES = (".dist-info", ".egg-info")


@functools.cache
def installed_version(project: str) -> str | None:
    """Version of an installed project, or None. Debian adds "-py3.11" or the like to some names."""
    for entry in map(Path, sys.path):
        for found in entry.glob(f"{project}-*") if entry.is_dir() else ():
            if found.suffix in _SUFFIXES:
                return found.name.removesuffix(found.suffix).split("-")[1]
    return None


def package_version() -> str:
    """Return xlb's installed version; "unknown" if the code runs without installation."""
    return installed_version("xlb") or "unknown"
