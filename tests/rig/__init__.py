"""The rig: a client, one or two nodes, backends and a switch in private network namespaces. See topology.py for the picture."""

from tests.rig.client import (
    Answer,
    Client,
    HeldConnections,
    Prober,
    Tally,
    http_get,
    repeat,
    tcp_connect,
    transfer,
    udp_exchange,
)
from tests.rig.node import Node, Refused
from tests.rig.topology import CLIENT4, CLIENT6, HTTP_PORT, TCP_PORT, UDP_PORT, VIP4, VIP6, Backend, Layout, Rig, why_not

__all__ = [
    "CLIENT4",
    "CLIENT6",
    "HTTP_PORT",
    "TCP_PORT",
    "UDP_PORT",
    "VIP4",
    "VIP6",
    "Answer",
    "Backend",
    "Client",
    "HeldConnections",
    "Layout",
    "Node",
    "Prober",
    "Refused",
    "Rig",
    "Tally",
    "http_get",
    "repeat",
    "tcp_connect",
    "transfer",
    "udp_exchange",
    "why_not",
]
