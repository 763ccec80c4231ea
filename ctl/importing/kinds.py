"""The kinds of configuration that can be imported, and the import of one.

Decides which reader a kind has. Must not know files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from ctl.errors import InvalidInput
from ctl.importing import haproxy, ipvsadm, keepalived, nftlb, zevenet
from ctl.importing.addresses import Choices
from ctl.importing.farms import Result, make
from ctl.importing.form import Imported, Source, one_line

READERS: Mapping[str, Callable[[Source], Imported]] = MappingProxyType(
    {
        "keepalived": keepalived.read,
        "ipvsadm": ipvsadm.read,
        "haproxy": haproxy.read,
        "nftlb": nftlb.read,
        "zevenet": zevenet.read,
    }
)


ONE_WHOLE = ("haproxy",)
"""Several files are one configuration: sections of a later file have the defaults of an earlier one."""


class NothingToImport(InvalidInput):
    """Nothing of the input can be carried over; `findings` have the reasons."""

    def __init__(self, message: str, key: str, imported: Imported) -> None:
        super().__init__(message, key)
        self.findings = tuple(imported.notes.findings)


def import_from(kind: str, sources: Sequence[Source], choices: Choices) -> Result:
    """The farms file of a configuration in one file or several.

    Raises InvalidInput naming the line where the input is not of this kind, NothingToImport where a farms file would be empty.
    """
    first = sources[0]
    if kind in ONE_WHOLE:
        sources = [replace(first, more=sources[1:])]
    imported = Imported()
    try:
        for source in sources:
            imported.add(READERS[kind](source))
    except InvalidInput as error:
        raise InvalidInput(one_line(error.detail), one_line(error.key), error.code) from None
    names = [each.name for source in sources for each in (source, *source.more)]
    try:
        result = make(kind, names, imported, choices) if imported.services or imported.addresses else None
    except InvalidInput as error:  # a limit of the whole
        raise InvalidInput(one_line(str(error)), first.name, error.code) from None
    if result is None or not (result.document["vip"] or result.document["farm"]):
        why = "the lines above have the reasons" if imported.notes.findings else f"is it a configuration of {kind}?"
        raise NothingToImport(f"has nothing that a farms file can have; {why}", first.name, imported)
    return result
