"""Differences between two configurations, as messages and as values.

Decides order and wording. Ignores ids, generation and the order of backends.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ctl.config.fields import backend_fields, farm_fields, vip_fields
from ctl.config.model import Backend, Config, Farm, PrefixList, Token, User, Vip

MAX_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """One change. `old` or `new` is None if the object did not or does not exist."""

    subject: str  # "vip 10.0.0.1" | "farm web" | "farm web: backend 10.0.0.3:80"
    action: str  # "add" | "remove" | "change"
    key: str  # the field, by its contract name; empty for add and remove
    old: object
    new: object
    note: str = ""  # summary of an added object; of a change: what is shown in place of values that must not be

    @property
    def summary(self) -> str:
        """E.g. "farm web: backend 10.0.0.3:80 weight 1 → 3"."""
        if self.action == "change" and self.note:
            return f"{self.subject} {self.key} {self.note}"
        if self.action == "change":
            return f"{self.subject} {self.key} {_shown(self.old)} → {_shown(self.new)}"
        verb = "added" if self.action == "add" else "removed"
        return f"{self.subject} {verb}{f' ({self.note})' if self.note else ''}"


def differences(old: Config, new: Config) -> tuple[Difference, ...]:
    """Ordered: VIPs, prefix lists, users, tokens, then farms by name, each followed by its backends by address and port."""
    return tuple(_differences(old, new))


def summaries(old: Config, new: Config) -> list[str]:
    """The differences as messages, built one at a time."""
    return [each.summary for each in _differences(old, new)]


def removals(old: Config, new: Config) -> list[str]:
    """The messages of what `new` has no more; a farm's backends are not listed apart from it."""
    return [each.summary for each in _differences(old, new) if each.action == "remove"]


def compact(old: Config, new: Config, most: int = MAX_SHOWN) -> str:
    """The first differences as one line, and how many more there are; characters that cannot be printed are escaped."""
    shown, count = [], 0
    for each in _differences(old, new):
        if count < most:
            shown.append(each.summary)
        count += 1
    text = "; ".join(shown) + (f"; and {count - most} more" if count > most else "")
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _differences(old: Config, new: Config) -> Iterator[Difference]:
    for address in sorted(old.vips.keys() | new.vips.keys()):
        yield from _vip_differences(address, old.vips.get(address), new.vips.get(address))
    for name in sorted(old.prefixes.keys() | new.prefixes.keys()):
        before, after = old.prefixes.get(name), new.prefixes.get(name)
        yield from _compared(
            f"prefix list {name}",
            {"prefixes": _summary(before)} if before else None,
            {"prefixes": _summary(after)} if after else None,
            f"{after.count} prefixes" if after else "",
        )
    for name in sorted(old.users.keys() | new.users.keys()):
        yield from _user_differences(name, old.users.get(name), new.users.get(name))
    for name in sorted(old.tokens.keys() | new.tokens.keys()):
        yield from _token_differences(name, old.tokens.get(name), new.tokens.get(name))
    for name in sorted(old.farms.keys() | new.farms.keys()):
        yield from _farm_differences(name, old.farms.get(name), new.farms.get(name))


def _vip_differences(address: str, old: Vip | None, new: Vip | None) -> Iterator[Difference]:
    note = f"/{new.prefix_length} on {new.device}" if new else ""
    yield from _compared(f"vip {address}", vip_fields(old) if old else None, vip_fields(new) if new else None, note)


def _user_differences(name: str, old: User | None, new: User | None) -> Iterator[Difference]:
    """Never with a hash: what is stored, logged and shown is no place for it."""
    subject = f"user {name}"
    yield from _compared(subject, _role(old), _role(new), str(new.role) if new else "")
    if old is not None and new is not None and old.password_hash != new.password_hash:
        yield Difference(subject, "change", "password", None, None, "changed")


def _token_differences(name: str, old: Token | None, new: Token | None) -> Iterator[Difference]:
    """Never with a digest. A token of another digest is another one."""
    subject, note = f"token {name}", str(new.role) if new else ""
    if old is not None and new is not None and old.sha256 != new.sha256:
        yield Difference(subject, "remove", "", _role(old), None)
        old = None
    yield from _compared(subject, _role(old), _role(new), note)


def _role(of: User | Token | None) -> dict[str, object] | None:
    return {"role": str(of.role)} if of is not None else None


def _summary(of: PrefixList) -> str:
    """Tells lists apart that have as many prefixes."""
    return f"{of.count} (checksum {zlib.crc32(of.v4 + b'/' + of.v6):08x})"


def _farm_differences(name: str, old: Farm | None, new: Farm | None) -> Iterator[Difference]:
    if old is new:
        return
    note = f"{','.join(new.vips)} port {new.ports}/{new.protocol}, {new.mode}, {new.scheduler}" if new else ""
    yield from _compared(
        f"farm {name}", _flat(farm_fields(old)) if old else None, _flat(farm_fields(new)) if new else None, note
    )
    if new is None:
        return
    before = {(each.address, each.port): each for each in old.backends} if old else {}
    after = {(each.address, each.port): each for each in new.backends}
    for address in sorted(before.keys() | after.keys()):
        yield from _backend_differences(name, before.get(address), after.get(address))


def _backend_differences(name: str, old: Backend | None, new: Backend | None) -> Iterator[Difference]:
    shown = new or old
    assert shown is not None
    note = f"weight {new.weight}" + (f", priority {new.priority}" if new.priority else "") if new else ""
    subject = f"farm {name}: backend {shown.endpoint}"
    yield from _compared(subject, backend_fields(old) if old else None, backend_fields(new) if new else None, note)


def _compared(
    subject: str, old: Mapping[str, object] | None, new: Mapping[str, object] | None, note: str
) -> Iterator[Difference]:
    if old is None or new is None:
        if old is not new:
            yield Difference(subject, "add" if old is None else "remove", "", old, new, note)
        return
    for key, value in new.items():
        if old[key] != value:
            yield Difference(subject, "change", key, old[key], value)


def _flat(values: dict[str, object]) -> dict[str, object]:
    """A farm's settings, those of its health check with the prefix "health."."""
    health = values.pop("health")
    assert isinstance(health, dict)
    return values | {f"health.{key}": value for key, value in health.items()}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if value != "" else "(none)"
