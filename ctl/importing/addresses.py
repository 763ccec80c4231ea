"""The addresses of what was read: VIPs that the input names only in part, listeners on all addresses, and impossible ones.

Decides which addresses become VIPs and backends. Must not know any kind of input, nor how services become farms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ctl.config.address_rules import Problem, problems
from ctl.config.model import Backend, Config, Farm, Vip
from ctl.config.validation import canonical_address, check_device
from ctl.errors import InvalidInput
from ctl.importing.form import ANY_V4, ANY_V6, Address, Imported, Listener, Notes, Server, Service

PLACEHOLDERS: Mapping[str, str] = {ANY_V4: "192.0.2.1", ANY_V6: "2001:db8::1"}
"""RFC 5737, RFC 3849: addresses that no machine has."""
DEFAULT_DEVICE = "eth0"
PROBE = "probe"
"""The farm that has all servers, to ask whether their addresses are possible."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator chooses where the input names nothing; device "": not chosen."""

    device: str = ""
    vips: tuple[tuple[str, int | None], ...] = ()
    length_v4: int = 32
    length_v6: int = 128

    def length(self, address: str) -> int:
        """The prefix length of a VIP for which the input names none."""
        return self.length_v6 if ":" in address else self.length_v4


@dataclass(slots=True)
class Addresses:
    """The VIPs of which the input, or the operator, names the length or the interface."""

    imported: Imported
    choices: Choices
    known: dict[str, Address] = field(default_factory=dict)

    @property
    def notes(self) -> Notes:
        return self.imported.notes

    def resolve(self) -> None:
        """Name all VIPs, and leave out services' addresses that no machine on a network can have, with findings."""
        for each in self.imported.addresses:
            self._join(each)
        for service in self.imported.services:
            service.listeners = [listener for each in service.listeners for listener in self._named(each, service)]
        self._choose_lengths()
        self._screen()

    @property
    def device(self) -> str:
        """The interface of VIPs for which the input names none: that of the operator, or the only one in the input."""
        named = {each.device for each in self.known.values() if each.device}
        return self.choices.device or (named.pop() if len(named) == 1 else DEFAULT_DEVICE)

    def vip(self, address: str) -> Vip:
        """The VIP as the farms file has it."""
        known = self.known.get(address)
        length = (known.length if known else None) or self.choices.length(address)
        return Vip(address, length, (known.device if known else None) or self.device)

    def _join(self, each: Address) -> None:
        try:
            check_device(each.device or DEFAULT_DEVICE, "")
        except InvalidInput as error:
            remedy = "name it with --dev INTERFACE, or correct the file"
            self.notes.lost(each.place, f"{each.address} on {each.device}", error.detail, remedy)
            each = Address(each.place, each.address, each.length)
        before = self.known.get(each.address)
        if before is None or (before.length, before.device) == (None, None):
            self.known[each.address] = each
        elif each.device and before.device and each.device != before.device:
            why = f"{before.place} has it on {before.device}"
            self.notes.lost(each.place, f"{each.address} on {each.device}", why, "a VIP has one interface; choose it")
        else:
            self.known[each.address] = Address(
                before.place, each.address, before.length or each.length, before.device or each.device
            )

    def _named(self, each: Listener, service: Service) -> list[Listener]:
        """A listener on all addresses becomes one for each VIP that the operator names, or for a placeholder."""
        if each.address not in PLACEHOLDERS:
            return [each]
        six = each.address == ANY_V6
        if service.mode != "ipip" and service.servers and all((":" in server.address) != six for server in service.servers):
            family = "IPv6" if six else "IPv4"
            why = f"no server has an {family} address, and xlb does not translate between the families"
            self.notes.lost(
                each.place, f"all {family} addresses of {service.statement}", why, f"add {family} backends and a VIP"
            )
            return []
        family_vips = [address for address, _ in self.choices.vips if (":" in address) == six]
        if not family_vips:
            placeholder = PLACEHOLDERS[each.address]
            why = f"listens on all addresses; a farm needs a VIP: {placeholder} is its placeholder"
            remedy = "name the VIP with --vip ADDRESS/LENGTH, or replace it in the file"
            self.notes.assumed(each.place, service.statement, why, remedy)
            family_vips = [placeholder]
        return [Listener(each.place, address, each.ports) for address in family_vips]

    def _choose_lengths(self) -> None:
        places = {each.address: each.place for service in self.imported.services for each in service.listeners}
        for address, length in self.choices.vips:
            known = self.known.get(address)
            if length is not None and (known is not None or address in places):
                place, device = (known.place, known.device) if known is not None else (places[address], None)
                self.known[address] = Address(place, address, length, device)

    def _screen(self) -> None:
        services = self.imported.services
        vips = {*self.known, *(each.address for service in services for each in service.listeners)}
        for service in services:
            service.servers = [each for each in service.servers if not self._is_vip(each, vips)]
        servers = {server.address for service in services for server in service.servers}
        wrong = {each.address: each for each in self._problems(vips, servers)}
        for address in wrong.keys() & self.known.keys():
            known = self.known.pop(address)
            self.notes.lost(known.place, f"VIP {address}", wrong[address].message, wrong[address].remedy)
        for service in services:
            for listener in service.listeners:
                if found := wrong.get(listener.address):
                    self.notes.lost(listener.place, f"{listener.address} of {service.statement}", found.message, found.remedy)
            for server in service.servers:
                if found := wrong.get(server.address):
                    self.notes.lost(server.place, server.statement, found.message, found.remedy)
            service.listeners = [each for each in service.listeners if each.address not in wrong]
            service.servers = [each for each in service.servers if each.address not in wrong]
            if service.settings.get("snat_address") in wrong:
                del service.settings["snat_address"]

    def _is_vip(self, server: Server, vips: set[str]) -> bool:
        if server.address not in vips:
            return False
        why = f"{server.address} is a VIP of this file, and a node does not balance twice"
        self.notes.lost(server.place, server.statement, why, "name the servers themselves")
        return True

    def _problems(self, vips: set[str], servers: set[str]) -> list[Problem]:
        """What is wrong with addresses, by the rules of `xlbctl apply`; the nodes' own addresses are not known here."""
        found = []
        for address in sorted({*vips, *servers}):
            try:
                canonical_address(address, "")
            except InvalidInput as error:
                found.append(Problem("", address, error.detail, "use the address of one host"))
        impossible = {each.address for each in found}
        backends = tuple(Backend(0, address, 1) for address in sorted(servers - impossible))
        config = Config(
            vips={address: self.vip(address) for address in vips - impossible},
            farms={PROBE: Farm(0, PROBE, "", 1, 1, backends=backends)},
        )
        return [*found, *problems(Config(), config, ())]
