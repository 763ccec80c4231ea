"""JSON schemas of what the API takes, for OpenAPI: those of farms follow from the tables of settings. Pure.

They describe; xlbd decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ctl.config.changes import CHANGES
from ctl.config.fields import PORTS_FORM
from ctl.config.model import CheckKind, DrainThen, Mode, Protocol, Role
from ctl.config.settings import BACKEND_SETTINGS, CHECK_SETTINGS, FARM_SETTINGS, MAX_INTERVAL_MS, NAME, Setting
from ctl.config.validation import MAX_CHECKS_IN_A_ROW

Schema = dict[str, Any]

PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}


def string(meaning: str, **more: Any) -> Schema:
    return {"type": "string", "description": meaning, **more}


def integer(meaning: str, low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": meaning}


def flag(meaning: str) -> Schema:
    return {"type": "boolean", "description": meaning}


def choice(kind: Iterable[str], meaning: str) -> Schema:
    return {"type": "string", "enum": [str(each) for each in kind], "description": meaning}


def table(properties: Mapping[str, Schema], *required: str) -> Schema:
    """An object with these keys and no others."""
    made: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return made | ({"required": list(required)} if required else {})


def of_setting(setting: Setting) -> Schema:
    """Of a row of ctl/config/settings.py."""
    more = {"description": setting.meaning, "default": _plain(setting.default)}
    if isinstance(setting.default, bool):
        return {"type": "boolean", **more}
    if setting.allowed:
        return {"type": "string", "enum": list(setting.allowed), **more}
    if isinstance(setting.default, int):
        if setting.among:
            return {"type": "integer", "enum": [setting.default, *setting.among], **more}
        return {"type": "integer", "minimum": min(setting.low, setting.default), "maximum": setting.high, **more}
    return {"type": "string", **({"pattern": f"^(?:{setting.pattern})?$"} if setting.pattern else {}), **more}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, str) else value


_VIP = {
    "address": string("Address with prefix length, like 10.77.0.100/24."),
    "device": string("Interface that has the address."),
    "guard": flag("Conflicts of the address are answered."),
}
_FORCE = flag("Also where a check warns.")
_HEALTH = {
    "kind": choice(CheckKind, "How the backends are checked."),
    "interval_ms": integer("From one check to the next.", 10, MAX_INTERVAL_MS),
    "timeout_ms": integer("After which a check has failed; at most `interval_ms`.", 1, MAX_INTERVAL_MS),
    "rise": integer("Successes in a row until a backend is up.", 1, MAX_CHECKS_IN_A_ROW),
    "fall": integer("Failures in a row until it is down.", 1, MAX_CHECKS_IN_A_ROW),
    "port": integer("Port that is checked; 0: the backend's.", 0, 65535),
    "path": string("`http`, `https`: path that is asked for."),
    "status": {"type": ["string", "integer"], "description": "`http`, `https`: expected status or range, like 200-399."},
    "host": string("`http`, `https`: header Host."),
    "address": string("Address that is checked; empty: the backend's."),
    **{each.name: of_setting(each) for each in CHECK_SETTINGS},
    "command": {"type": "array", "items": {"type": "string"}, "description": "`command`: program and arguments."},
}
_FARM = {
    "name": string("Name of the farm.", pattern=f"^{NAME}$"),
    "vip": {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "Virtual addresses: one, several separated by commas, or a list.",
    },
    "port": {
        "type": ["integer", "string", "array"],
        "items": {"type": ["integer", "string"]},
        "description": PORTS_FORM[0].upper() + PORTS_FORM[1:],
    },
    "proto": choice(Protocol, "Transport."),
    "mode": choice(Mode, "How packets reach the backends."),
    "snat_address": string("Mode `snat`: source addresses towards the backends; empty: the VIPs."),
    **{each.name: of_setting(each) for each in FARM_SETTINGS},
    "health": table(_HEALTH),
}
_BACKEND = {
    "address": string("Address of the server."),
    "port": PORT | {"description": "Port of the server; default: the first of the farm."},
    **{each.name: of_setting(each) for each in BACKEND_SETTINGS},
}
_ROLE = choice(Role, "What the account may do: look, or everything.")
_PASSWORD = string("Password: at least 10 characters, at most 1024 bytes.", format="password")
_ACCOUNT = string("Name of the account.")
_ANY: Schema = {"type": "object", "description": "A farms file as a document, as GET /config returns it."}
_DOCUMENT = {"document": _ANY, "toml": string("A farms file (TOML); in place of `document`.")}
_DRY = flag("Only report what would change.")
_ADDRESS = string("IP address.")


def _without(properties: Mapping[str, Schema], *names: str) -> dict[str, Schema]:
    return {name: each for name, each in properties.items() if name not in names}


BODIES: Mapping[str, Schema] = {
    "Login": table({"name": _ACCOUNT, "password": _PASSWORD}, "name", "password"),
    "OwnPassword": table({"old": _PASSWORD, "new": _PASSWORD}, "old", "new"),
    "NewUser": table({"name": _ACCOUNT, "role": _ROLE, "password": _PASSWORD}, "name", "password"),
    "User": table({"role": _ROLE, "password": _PASSWORD}),
    "NewToken": table(
        {
            "name": string("Name of the token."),
            "role": _ROLE,
            "expires_days": integer("Days until it ends; 0: never.", 0, 36500),
        },
        "name",
    ),
    "NewVip": table(_VIP | {"force": _FORCE}, "address", "device"),
    "Vip": table({"guard": _VIP["guard"]}),
    "NewFarm": table(_FARM, "name", "vip", "port"),
    "Farm": table(_without(_FARM, "name")),
    "NewBackend": table(_BACKEND, "address"),
    "Backend": table(_without(_BACKEND, "address", "port")),
    "Drain": table(
        {
            "deadline": integer("Seconds from now until the drain ends.", 1, 30 * 24 * 3600),
            "drain_until": integer("The same as seconds since 1970.", 0, 2**32 - 1),
            "drain_then": choice(DrainThen, "What happens then to the connections that are left."),
        }
    ),
    "Prefixes": table(
        {"prefixes": {"type": "array", "items": {"type": "string"}, "description": 'Prefixes like "10.0.0.0/8".'}}, "prefixes"
    ),
    "Document": table(_DOCUMENT),
    "Applied": table(_DOCUMENT | {"dry_run": _DRY, "force": _FORCE}),
    "Impact": table(
        _DOCUMENT
        | {
            "change": choice(sorted(CHANGES), "A command that would change the configuration; in place of a document."),
            "arguments": {"type": "object", "description": "Its arguments, as on the control socket."},
        }
    ),
    "Rollback": table({"dry_run": _DRY, "force": _FORCE}),
    "Flush": table({"farm": string("Only of this farm."), "backend": string("Only of this backend, ADDRESS:PORT.")}),
    "Maintenance": table({"on": flag("True: out of service."), "force": flag("Also if no peer can take over.")}, "on"),
    "PairToken": table({"local": _ADDRESS, "peer": _ADDRESS}, "local", "peer"),
    "Join": table({"local": _ADDRESS, "token": string("The token of the other node.")}, "local", "token"),
    "Creation": table(
        {
            "local": _ADDRESS,
            "peer": _ADDRESS,
            "password": string("Password of root on the peer; it is never stored.", format="password"),
            "password_repeat": string("The same again.", format="password"),
            "ssh_port": PORT,
        },
        "local",
        "peer",
        "password",
        "password_repeat",
    ),
    "CreationAnswer": table({"question": string("Id of the question."), "accept": flag("The answer.")}, "question", "accept"),
}
"""By the name that a route has."""
