"""A node whose cluster.json is lost: whether it belongs to a pair all the same.

Decides from what else remembers the pair: the epoch file, the configuration, the lease in the kernel. A node that forgot its
pair must not serve as a single node, because its peer may be active. Must not know files.
"""

from __future__ import annotations

from ctl.state.epoch_file import EpochState

REMEDY = "restore cluster.json, or run xlbctl cluster destroy --yes to serve alone"


def why_orphaned(epochs: EpochState | None, pair: str, lease_epoch: int) -> str:
    """Why a node without cluster.json must not serve, with the remedy; empty if it is single.

    epochs: of epoch.json, None if there is none; pair: the id in the configuration; lease_epoch: of the lease in the kernel. A
    single node's is 0. 0.1.0 left pair and epoch.json behind when a pair was destroyed: these two alone prove nothing.
    """
    if epochs is not None and epochs.nodes:
        return f"this configuration belongs to the pair {epochs.nodes}; {REMEDY}"
    if lease_epoch:
        return f"this node was in a pair (epoch {lease_epoch}) until its daemon ended, and its cluster.json is gone; {REMEDY}"
    if pair and epochs is None:
        return f"this configuration belongs to a pair, and neither cluster.json nor epoch.json is there; {REMEDY}"
    return ""
