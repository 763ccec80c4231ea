"""What the pair acknowledged of the changes it was given, and whether both nodes still have it.

Decides what an acknowledged change is worth: the answer comes without a note once both disks have the change, and with one
while the peer is absent. Only the first kind must survive every single fault.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from ctl.api.client import Client
from ctl.errors import XlbError
from tests.rig import VIP4, Node

FIRST_PORT, PORTS = 20000, 2000
KEPT = 40
TIMEOUT_MS = 3000


def ask(node: Node, command: str, **arguments: Any) -> str:
    """Returns the note of the answer. Raises XlbError where there is none, or a refusal."""
    with Client(node.run_dir / "control.sock", TIMEOUT_MS) as client:
        client.call(command, arguments)
        return client.note


@dataclass(slots=True)
class Ledger:
    """Farms that were added and deleted, and what is known of each: True both have it, False neither, None unknown."""

    known: dict[str, bool | None] = field(default_factory=dict)
    acknowledged: int = 0
    alone: int = 0  # acknowledged by one node while its peer was absent
    refused: int = 0
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def change(self, node: Node) -> None:
        """Add a farm through `node`, or delete the oldest one."""
        present = [name for name, there in self.known.items() if there]
        if len(present) >= KEPT:
            self._ask(node, "farm.delete", False, present[0])
            return
        number = next(self._numbers)
        self._ask(node, "farm.add", True, f"change{number}", vip=VIP4, port=FIRST_PORT + number % PORTS)

    def _ask(self, node: Node, command: str, there: bool, name: str, **arguments: Any) -> None:
        self.known[name] = None  # whatever happens from here on, unless it is acknowledged
        try:
            note = ask(node, command, name=name, **arguments)
        except XlbError:
            self.refused += 1
            return
        if note:
            self.alone += 1
        else:
            self.acknowledged += 1
            self.known[name] = there

    def judge(self, nodes: list[Node]) -> list[str]:
        """One message per acknowledged change that a node does not have. What was unknown is known afterwards."""
        has = {node.name: {farm["name"] for farm in node.call("farm.list")} for node in nodes}
        wrong = []
        for name, there in list(self.known.items()):
            found = {node: name in farms for node, farms in has.items()}
            if len(set(found.values())) > 1:
                wrong.append(f"{name} is on one node only: {found}")
            elif there is not None and there not in found.values():
                wrong.append(f"{name} was acknowledged as {'added' if there else 'deleted'}, and is {'not ' * there}there")
            if any(found.values()):
                self.known[name] = True
            else:
                del self.known[name]
        return wrong
