"""A small configuration of each other load balancer that `xlbctl import` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SAMPLES: Mapping[str, str] = {
    "keepalived": "virtual_server 192.0.2.10 80 {\n  lb_kind NAT\n  real_server 192.0.2.11 80 {\n    TCP_CHECK { }\n  }\n}\n",
    "ipvsadm": "-A -t 192.0.2.10:80 -s rr\n-a -t 192.0.2.10:80 -r 192.0.2.11:80 -m -w 1\n",
    "haproxy": "listen web\n  mode tcp\n  bind *:80\n  server a 192.0.2.11:80 check\n",
    "nftlb": '{"farms": [\n{"name": "web", "virtual-addr": "192.0.2.10", "virtual-ports": "80", "mode": "dnat"}\n]}\n',
    "zevenet": "web;tcp;192.0.2.10;80;nat;weight;none;120;up\n;server;192.0.2.11;80;0x200;1;1;up\n",
}
FILES: Mapping[str, str] = {
    "keepalived": "keepalived.conf",
    "haproxy": "haproxy.cfg",
    "nftlb": "nftlb.json",
    "zevenet": "web_l4xnat.cfg",
}
"""The names that examples use."""


def write_samples(directory: Path) -> None:
    """Write the samples under the names that examples in help and documents use."""
    for kind, name in FILES.items():
        (directory / name).write_text(SAMPLES[kind])
    (directory / "mail_l4xnat.cfg").write_text(SAMPLES["zevenet"].replace("web", "mail").replace(";80;", ";25;"))
