"""Removes the state of xlbd from the kernel: programs on interfaces, VIPs, pins. The package runs it on removal.

Decides nothing. Leaves the farms in state_dir alone. Requires that xlbd has stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bpf.dataplane import PlaneError
from bpf.kernel import attach
from bpf.loading import loader
from ctl.daemon import locked_run_dir
from ctl.errors import XlbError
from ctl.network.kernel.kernel_network import KernelNetwork
from ctl.network.vip_addresses import VipAddresses
from ctl.state import node_file


def uninstall(bpf_dir: Path, run_dir: Path) -> list[str]:
    """Remove everything; returns one message per removal. Raises XlbError or PlaneError, also while xlbd runs."""
    done = []
    network = KernelNetwork()
    try:
        with locked_run_dir(run_dir):
            done += [f"XDP detached from {name}" for name in attach.detach(bpf_dir, sorted(network.interfaces()))]
            addresses = VipAddresses(network, run_dir)
            done += [
                f"{each.address}/{each.prefix_length} removed from {each.device}" for each in sorted(addresses.ours, key=str)
            ]
            addresses.withdraw()
            if bpf_dir.exists():
                loader.remove_pins(bpf_dir)
                done.append(f"{bpf_dir} removed")
    finally:
        network.close()
    return done


def main() -> None:
    """`python -m ctl.uninstall [NODE FILE]`: exits 0 once nothing of xlb is left in the kernel."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else node_file.DEFAULT_PATH
    try:
        node = node_file.load(path).node
        for message in uninstall(node.bpf_dir, node.run_dir):
            print(message)
    except (XlbError, PlaneError) as error:
        sys.exit(f"xlb: cannot remove its state from the kernel: {error}")


if __name__ == "__main__":
    main()
