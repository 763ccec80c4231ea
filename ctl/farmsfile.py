"""The declarative farms file: TOML that people keep in git, to `Config` values and back.

Decides names, types and places in error messages. Knows no ids (0 stands for "not given yet": `changes.replace_from_document`
assigns them), no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ctl.model import Config, Farm, Vip


@dataclass(frozen=True, slots=True)
class Document:
    """What a farms file says; every id is 0."""

    vips: tuple[Vip, ...]
    farms: tuple[Farm, ...]


def parse_text(text: str, source: str) -> Mapping[str, object]:
    """TOML text to the document that `config.apply` takes. Raises InvalidInput naming `source`, line and column."""
    ...


def parse(document: Mapping[str, object]) -> Document:
    """Check and convert a document. Raises InvalidInput whose key is the place, e.g. `farm "web".backend[2].port`."""
    ...


def to_document(config: Config) -> dict[str, object]:
    """The document that describes `config`; defaults are left out. `parse(to_document(c))` is c without ids."""
    ...


def to_text(document: Mapping[str, object]) -> str:
    """A document as TOML."""
    ...
