"""One line about the node, for systemd and the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bpf.kernel.attach import Attachment
from ctl.config.model import Config
from ctl.runtime.systemd import Notifier


class Summary:
    """Reads what it names at the moment it is asked for."""

    def __init__(
        self,
        node: str,
        config: Callable[[], Config],
        role: Callable[[], str],
        attachments: Callable[[], Mapping[str, Attachment]],
        notifier: Notifier,
    ) -> None:
        self._node, self._config, self._role, self._attachments = node, config, role, attachments
        self._notifier = notifier

    def line(self) -> str:
        config = self._config()
        interfaces = ", ".join(f"{name} ({each.mode})" for name, each in sorted(self._attachments().items()))
        serves = f"{len(config.farms)} farms on {len(config.vips)} VIPs"
        return f"{self._role()} node {self._node} serves {serves}; XDP on {interfaces or 'no interface'}"

    def show(self) -> None:
        """Role or configuration have changed: the service manager gets the new line."""
        self._notifier.status(self.line())
