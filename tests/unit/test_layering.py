"""Packages form layers, and pure packages do no I/O: the import graph, computed from the sources, against one table.

The table is in docs/ARCHITECTURE.md ("Packages"). A package may import itself and packages of lower rows, so no package can
be part of an import cycle; a separate test checks that too. Imports inside functions count like all others.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.tree import TREE

TOP_LEVEL = ("bpf", "ctl", "sync")
STANDARD_OF_PURE = {
    *(
        "__future__",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "collections.abc",
        "dataclasses",
        "difflib",
        "enum",
        "errno",
        "fnmatch",
    ),
    *("functools", "hashlib", "heapq", "hmac", "ipaddress", "itertools", "json", "math", "re", "shlex", "struct", "sys"),
    *("tomllib", "types", "typing", "zlib", "msgpack", "numpy", "numpy.typing"),
}
PURE_ELSEWHERE = {"bpf.constants", "bpf.dataplane", "bpf.columns"}
"""Modules without I/O in packages that have some."""
MOST_MODULES = 16


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the product, by dotted name."""
    paths = (path for top in TOP_LEVEL for path in (TREE / top).rglob("*.py"))
    found = {".".join(path.relative_to(TREE).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    del found["ctl"]  # only a docstring
    return found


@cache
def rows() -> Mapping[str, bool]:
    """The table of docs/ARCHITECTURE.md from top to bottom: package to "it is pure"."""
    text = (TREE / "docs" / "ARCHITECTURE.md").read_text().split("\n## Packages\n")[1].split("\n## ")[0]
    return {name: pure == "pure" for name, pure in re.findall(r"^\| `([\w.]+)` \| (\w*) *\|", text, re.MULTILINE)}


def package_of(module: str) -> str:
    """The row a module belongs to: its own, or its package's."""
    is_package = modules()[module].name == "__init__.py"
    name = module if module in rows() or is_package else module.rpartition(".")[0]
    assert name in rows(), f"docs/ARCHITECTURE.md has no row for {name}"
    return name


def imports(source: str) -> Iterator[str]:
    """What a module imports, as dotted names: of the product, the module itself and not a name in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in modules() else node.module


def own(source: str) -> Iterator[str]:
    """The imports of the product's own modules."""
    return (name for name in imports(source) if name.partition(".")[0] in TOP_LEVEL)


def violations(package: str, source: str) -> list[str]:
    """Packages that a module of `package` imports and must not."""
    order = list(rows())
    return sorted({of for of in map(package_of, own(source)) if order.index(of) < order.index(package)})


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module: str) -> None:
    assert violations(package_of(module), modules()[module].read_text()) == []


def test_an_import_that_points_up_is_found() -> None:
    assert violations("ctl.dataplane", "def f():\n    from ctl.node import process") == ["ctl.node"]
    assert violations("sync.flows", "import ctl.errors, bpf.constants") == ["ctl.errors"]
    assert violations("ctl.node", "from ctl.cluster import driver") == []


def test_no_package_imports_in_a_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in modules().items():
        package = package_of(module)
        graph.setdefault(package, set()).update(set(map(package_of, own(path.read_text()))) - {package})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_no_module_imports_in_a_cycle() -> None:
    graph = {module: set(own(path.read_text())) - {module} for module, path in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


@pytest.mark.parametrize("module", sorted(module for module in modules() if rows()[package_of(module)]))
def test_pure_packages_do_no_input_or_output(module: str) -> None:
    foreign = set(imports(modules()[module].read_text())) - STANDARD_OF_PURE - PURE_ELSEWHERE
    assert {name for name in foreign if name not in modules() or not rows()[package_of(name)]} == set()


def test_every_row_is_a_package_that_exists() -> None:
    assert set(map(package_of, modules())) == set(rows()) and len(rows()) > 20


def test_the_size_of_packages_is_bounded() -> None:
    sizes: dict[str, int] = {}
    for module in (name for name, path in modules().items() if path.name != "__init__.py"):
        sizes[package_of(module)] = sizes.get(package_of(module), 0) + 1
    assert max(sizes.values()) <= MOST_MODULES, sizes


def test_no_test_module_is_imported() -> None:
    """Code shared by several tests belongs in tests/fakes, tests/rig or a module without tests."""
    paths = (path for folder in ("tests", "bench") for path in (TREE / folder).rglob("*.py"))
    shared = {str(path.relative_to(TREE)): [name for name in imports(path.read_text()) if ".test_" in name] for path in paths}
    assert {path: names for path, names in shared.items() if names} == {}
