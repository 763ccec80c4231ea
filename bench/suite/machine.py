"""What the figures were measured on: machine, kernel, commit, load. Reads files and git; decides nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def facts() -> dict[str, str]:
    """Name to text, in the order in which the report shows them."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _commit(),
        "processor": f"{_first('/proc/cpuinfo', 'model name') or platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) >> 20} GiB",
        "kernel": platform.release(),
        "system": _first("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "hypervisor": "yes" if "hypervisor" in _first("/proc/cpuinfo", "flags") else "not seen",
        "Python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def packages(names: list[str]) -> str:
    """The installed versions of Debian packages, "nftables 1.0.6-2+deb12u2, …"; one that is missing is named as such."""
    if not names:
        return ""
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}\\n", *names]
    try:
        found = dict(line.split() for line in _output(query).splitlines() if " " in line.strip())
    except FileNotFoundError:
        return "unknown: not a Debian system"
    return ", ".join(f"{name} {found.get(name, 'is not installed')}" for name in names)


def python_packages(names: list[str]) -> str:
    return ", ".join(f"{name} {version(name)}" for name in names)


def _commit() -> str:
    try:
        commit = _output(["git", "rev-parse", "--short=12", "HEAD"]).strip()
        changed = _output(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/RESULTS*", ":!bench/plots"]
        )
    except FileNotFoundError:
        return "unknown: git is not installed"
    return f"{commit or 'unknown'}{' with changes' if changed.strip() else ''}"


def _output(command: list[str]) -> str:
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout


def _first(path: str, name: str, separator: str = ":") -> str:
    """The value of the first line "name: value" of a file, or an empty text."""
    for line in Path(path).read_text().splitlines():
        key, found, value = line.partition(separator)
        if found and key.strip() == name:
            return value.strip()
    return ""
