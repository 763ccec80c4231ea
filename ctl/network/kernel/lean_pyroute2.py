"""Imports the two classes of pyroute2 that xlbd uses, without the seventy modules its package imports for everybody else.

`import pyroute2` costs 12 MB and 90 ms: conntrack, IPVS, Wi-Fi, NDB. A daemon that promises 60 MB and half a second cannot
pay that. The package's own __init__ is left out while the submodules are imported, then everything is as if nobody had:
a later `import pyroute2` works as ever. Where the submodules do not lie where 0.7 and 0.9 have them, the whole package is
imported. Modules that `ctl.runtime.footprint` bars are named by pyroute2 for its probes and
mocks, which are not used here: a stand-in replaces them meanwhile.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, NamedTuple

from ctl.runtime import footprint

PACKAGE = "pyroute2"


class Classes(NamedTuple):
    """`IPRoute` asks, `MarshalRtnl` parses what the kernel says unasked."""

    IPRoute: Any
    MarshalRtnl: Any


@functools.cache
def classes() -> Classes:
    """Raises ImportError when pyroute2 is not installed."""
    if PACKAGE in sys.modules:
        return _whole()
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("pyroute2 is not installed: apt install python3-pyroute2")
    hollow = ModuleType(PACKAGE)
    hollow.__path__ = list(spec.submodule_search_locations)
    hollow.__spec__ = spec
    barred = {name: module for name, module in _stand_ins().items() if name in sys.modules and sys.modules[name] is None}
    sys.modules |= {PACKAGE: hollow, **barred}
    try:
        linux = importlib.import_module("pyroute2.iproute.linux")
        marshal = importlib.import_module("pyroute2.netlink.rtnl.marshal")
        return Classes(linux.IPRoute, marshal.MarshalRtnl)
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        return _whole()
    finally:
        if sys.modules.get(PACKAGE) is hollow:
            del sys.modules[PACKAGE]
        for name in barred:
            footprint.bar(name)


def _stand_ins() -> dict[str, ModuleType]:
    """Empty modules by name: OpenSSL for probes of HTTPS servers, unittest for mocked sockets."""
    unittest, mock = ModuleType("unittest"), ModuleType("unittest.mock")
    vars(unittest)["mock"] = mock
    vars(mock)["Mock"] = object
    return {"ssl": ModuleType("ssl"), "unittest": unittest}


def _whole() -> Classes:
    package = importlib.import_module(PACKAGE)
    return Classes(package.IPRoute, importlib.import_module("pyroute2.netlink.rtnl.marshal").MarshalRtnl)
