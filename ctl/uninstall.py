"""Removes the state of xlbd from the kernel: programs on interfaces, VIPs, pins. The package runs it on removal.

Works from what is in the kernel: a node file that is missing or invalid leaves nothing behind. Leaves the farms in state_dir
alone. Requires that xlbd has stopped.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bpf.dataplane import PlaneError
from bpf.kernel import attach, leftovers
from bpf.loading import loader
from ctl.daemon import locked_run_dir
from ctl.errors import XlbError
from ctl.network.kernel.kernel_network import KernelNetwork
from ctl.network.vip_addresses import VipAddresses
from ctl.state import node_file

BPF_DIR, RUN_DIR = Path("/sys/fs/bpf/xlb"), Path("/run/xlb")


@dataclass(frozen=True, slots=True)
class Places:
    """Where xlb's state may be. `warning`: why the node file did not say; empty: it did."""

    bpf_dirs: frozenset[Path]
    run_dirs: frozenset[Path]
    warning: str = ""


def named_places(path: Path) -> Places:
    """The places that the node file names; of an invalid one what can be read, and the defaults."""
    try:
        node = node_file.load(path).node
        return Places(frozenset({node.bpf_dir}), frozenset({node.run_dir}))
    except XlbError as error:
        warning = " ".join(str(error).split("\n")[0].split())
    text = ""
    with contextlib.suppress(OSError):
        text = path.read_text(errors="replace")
    bpf_dirs, run_dirs = (frozenset({*_values(text, key), default}) for key, default in _KEYS.items())
    return Places(bpf_dirs, run_dirs, warning)


_KEYS = {"bpf_dir": BPF_DIR, "run_dir": RUN_DIR}


def _values(text: str, key: str) -> Iterable[Path]:
    """Absolute paths that lines of a damaged TOML document give to `key`."""
    return map(Path, re.findall(rf"""^\s*{key}\s*=\s*["'](/[^"'\n]+)["']""", text, re.MULTILINE))


def uninstall(named: Places) -> list[str]:
    """Remove everything; returns one message per removal. Raises XlbError or PlaneError, also while xlbd runs."""
    pinned = leftovers.pins(leftovers.programs())
    bpf_dirs = sorted({*named.bpf_dirs, *pinned})
    run_dirs = sorted({*named.run_dirs, *filter(None, pinned.values()), *filter(None, map(loader.run_dir_of, bpf_dirs))})
    done = []
    network = KernelNetwork()
    try:
        with contextlib.ExitStack() as locks:
            present = [run_dir for run_dir in run_dirs if run_dir.is_dir()]
            for run_dir in present:
                locks.enter_context(locked_run_dir(run_dir))
            for bpf_dir in bpf_dirs:
                done += [f"XDP detached from {name}" for name in attach.detach(bpf_dir, sorted(network.interfaces()))]
            for run_dir in present:
                done += _withdraw(VipAddresses(network, run_dir))
            for bpf_dir in filter(Path.exists, bpf_dirs):
                loader.remove_pins(bpf_dir)
                done.append(f"{bpf_dir} removed")
    finally:
        network.close()
    return done


def _withdraw(addresses: VipAddresses) -> list[str]:
    ours = sorted(addresses.ours, key=str)
    addresses.withdraw()
    return [f"{each.address}/{each.prefix_length} removed from {each.device}" for each in ours]


def main() -> None:
    """`python -m ctl.uninstall [NODE FILE]`: exits 0 once nothing of xlb is left in the kernel."""
    named = named_places(Path(sys.argv[1]) if len(sys.argv) > 1 else node_file.DEFAULT_PATH)
    if named.warning:
        print(f"xlb: removing what is in the kernel, because {named.warning}", file=sys.stderr)
    try:
        for message in uninstall(named):
            print(message)
    except (XlbError, PlaneError) as error:
        sys.exit(f"xlb: cannot remove its state from the kernel: {error}")


if __name__ == "__main__":
    main()
