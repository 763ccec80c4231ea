"""Which versions are installed: of xlb and of what it stands on.

Reads the names of the directories pip and Debian leave beside a package; importlib.metadata gives the same answer and stays
resident with 2 MB, which a daemon has better uses for.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

_SUFFIXES = (".dist-info", ".egg-info")


@functools.cache
def installed_version(project: str) -> str | None:
    """Version of an installed project, None if there is none. Debian adds "-py3.11" or the like to some names."""
    for entry in map(Path, sys.path):
        for found in entry.glob(f"{project}-*") if entry.is_dir() else ():
            if found.suffix in _SUFFIXES:
                return found.name.removesuffix(found.suffix).split("-")[1]
    return None


def package_version() -> str:
    """Return xlb's installed version; "unknown" where the code runs without having been installed."""
    return installed_version("xlb") or "unknown"
