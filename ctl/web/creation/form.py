"""The form of a creation: the four fields of the page, and the port of SSH. Values that only the node can judge are its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctl.config.fields import Fields
from ctl.errors import Code, InvalidInput

FIELDS = ("local", "peer", "password", "password_repeat", "ssh_port")
MAX_PASSWORD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Form:
    """password: of root on the peer; empty: xlb-web's own SSH keys are used."""

    local: str
    peer: str
    password: str = field(repr=False)
    ssh_port: int


def parse(body: Mapping[str, Any]) -> Form:
    """Raises InvalidInput with the key at fault. No message has the password."""
    fields = Fields(body, "", FIELDS)
    local, peer = fields.address("local"), fields.address("peer")
    passwords = [body.get(name) for name in ("password", "password_repeat")]
    for name, given in zip(("password", "password_repeat"), passwords, strict=True):
        if given is None:
            raise InvalidInput("is missing; expected the password of root on the peer", name, Code.MISSING_ARGUMENT)
        if not isinstance(given, str) or len(given.encode(errors="replace")) > MAX_PASSWORD_BYTES:
            raise InvalidInput(f"expected a string of at most {MAX_PASSWORD_BYTES} bytes", name)
    if passwords[0] != passwords[1]:
        raise InvalidInput("the two passwords differ; type the same one twice", "password_repeat")
    return Form(local, peer, str(passwords[0]), fields.integer("ssh_port", 22, 1, 65535))
