"""Imports the class of pyroute2 that xlbd uses, without the other seventy modules of the package.

`import pyroute2` costs 12 MB and 90 ms (conntrack, IPVS, Wi-Fi, NDB), too much for a daemon of 60 MB that starts in half a
second. This module imports the submodules without the package's __init__ and then removes the traces, so that a later
`import pyroute2` works normally. If the submodules are not at their paths of 0.7 and 0.9, it imports the whole package.
pyroute2 imports modules that `ctl.runtime.footprint` blocks, for probes and mocks that xlbd does not use; empty modules replace
them during the import.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

from ctl.runtime import footprint

PACKAGE = "pyroute2"


_LOADING = threading.Lock()


def iproute() -> Any:
    """The class `IPRoute`; any thread may ask first. Raises ImportError when pyroute2 is not installed."""
    with _LOADING:  # another thread must not take the hollow package for the whole one
        return _load()


@functools.cache
def _load() -> Any:
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
        return importlib.import_module("pyroute2.iproute.linux").IPRoute
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


def _whole() -> Any:
    return importlib.import_module(PACKAGE).IPRoute
