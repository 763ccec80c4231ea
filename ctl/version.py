"""Which version of xlb this is, as its installation says."""

from __future__ import annotations

import importlib.metadata


def package_version() -> str:
    """Return the installed version; "unknown" where the code runs without having been installed."""
    try:
        return importlib.metadata.version("xlb")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
