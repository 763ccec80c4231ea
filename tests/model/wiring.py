"""The routes and neighbours that tests/bpf/bed.py makes."""

from __future__ import annotations

import ipaddress

from tests.bpf.bed import GATEWAY_MAC, NODE_IN_MAC, NODE_OUT_MAC, SMALL, SMALL_MTU, backend_mac, near_mac
from tests.model.routes import Interface, Routes


def routes_of(in0: int, out0: int) -> Routes:
    """in0, out0: the numbers of the interfaces."""

    def mac(text: str) -> bytes:
        return bytes.fromhex(text.replace(":", ""))

    def address(text: str) -> bytes:
        return ipaddress.ip_address(text).packed

    routes = Routes()
    near = Interface(in0, mac(NODE_IN_MAC), {4: address("10.1.0.1"), 16: address("fd01::1")})
    far = Interface(out0, mac(NODE_OUT_MAC), {4: address("10.2.0.1"), 16: address("fd02::1")})
    for prefix, interface in (("10.1.0.0/24", near), ("fd01::/64", near), ("10.2.0.0/24", far), ("fd02::/64", far)):
        routes.add(prefix, interface)
    routes.add("0.0.0.0/0", near, "10.1.0.254")
    routes.add("::/0", near, "fd01::fe")
    for prefix in ("10.9.0.0/16", "fd09::/64", "127.0.0.0/8", "::1/128", "ff00::/8"):
        routes.add(prefix, None)
    for net in ("10.1.0.", "10.2.0."):
        routes.add(f"{net}1/32", None)
        routes.add(f"{net}255/32", None)
    for net in ("fd01::", "fd02::"):
        routes.add(f"{net}1/128", None)
        routes.add(f"{net}/128", None)  # the anycast address of its routers
    routes.add(f"10.2.0.{SMALL}/32", far, mtu=SMALL_MTU)
    routes.add(f"fd02::{SMALL}/128", far, mtu=SMALL_MTU)
    for number in (*range(11, 20), SMALL):
        for net in ("10.1.0.", "fd01::"):
            routes.neighbours[address(f"{net}{number}")] = mac(near_mac(number))
        for net in ("10.2.0.", "fd02::"):
            routes.neighbours[address(f"{net}{number}")] = mac(backend_mac(number))
    for gateway in ("10.1.0.254", "fd01::fe"):
        routes.neighbours[address(gateway)] = mac(GATEWAY_MAC)
    return routes
