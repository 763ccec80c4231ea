"""The node file (TOML): what this one machine is, edited by people and never replicated.

Decides defaults, names and bounds. Only `load` touches the file system.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PATH = Path("/etc/xlb/node.toml")


class XdpMode(enum.StrEnum):
    """How the program is attached: auto takes native and falls back to generic."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


@dataclass(frozen=True, slots=True)
class NodeSection:
    name: str
    state_dir: Path
    run_dir: Path
    bpf_dir: Path


@dataclass(frozen=True, slots=True)
class DataSection:
    interfaces: tuple[str, ...]
    xdp_mode: XdpMode
    max_flows: int


@dataclass(frozen=True, slots=True)
class ClusterSection:
    heartbeat_ms: int
    lease_ms: int
    takeover_ms: int
    priority: int
    failback: bool
    track: tuple[str, ...]  # default: data.interfaces
    gateway: str  # canonical address; empty: none


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """A checked node file."""

    source: str
    node: NodeSection
    data: DataSection
    cluster: ClusterSection

    @property
    def control_endpoint(self) -> str:
        """ZeroMQ address of the control socket."""
        return f"ipc://{self.node.run_dir}/control.sock"


def load(path: Path) -> NodeSettings:
    """Read and check a node file. Raises InvalidInput (content) or XlbError (missing, unreadable), naming path and remedy."""
    ...


def parse(text: str, source: str, hostname: str) -> NodeSettings:
    """Check the TOML `text`; `source` names it in errors, `hostname` is node.name's default."""
    ...
