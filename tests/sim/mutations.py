"""Rules broken on purpose: each change of the code must be found by the simulation, else it does not test that rule.

`mutations.txt` lists them like a patch: a name, the module, the profile whose histories are to find it (with these faults only,
where the accident it takes is rare), the text that is removed and the text that replaces it. Only the byte code
of the functions that differ is swapped, and put back afterwards, so that classes keep their identity. A rare one also names the
seed that noticed it last, which is played first: if the code has changed since, others are tried as for any other.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from tests.sim.world import PROFILES, World


@dataclass(frozen=True)
class Mutation:
    """`old` occurs exactly once in the module's source and becomes `new`."""

    name: str
    module: str
    profile: str
    faults: str  # only these, if any, joined by +
    old: str
    new: str
    seed: int | None = None  # of the history that is played first


def read_mutations() -> tuple[Mutation, ...]:
    """The mutations of mutations.txt."""
    found = []
    for part in Path(__file__).with_suffix(".txt").read_text().split("\n\n"):
        head, *lines = part.strip("\n").split("\n")
        match = re.fullmatch(r"@ (.+) \[([\w.]+), (\w+)(?:, ([a-z_+]+))?(?:, seed (\d+))?\]", head)
        assert match, head
        old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
        name, module, profile, faults, seed = match.groups(default="")
        found.append(Mutation(name, module, profile, faults, old, new, int(seed) if seed else None))
    return tuple(found)


MUTATIONS = read_mutations()


def functions(module: types.ModuleType) -> dict[str, types.FunctionType]:
    """Every function of the module and its classes, by qualified name."""
    found: dict[str, types.FunctionType] = {}
    for holder in [module, *(value for value in vars(module).values() if inspect.isclass(value))]:
        for value in vars(holder).values():
            function = value.fget if isinstance(value, property) else value
            if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                found[function.__qualname__] = function
    return found


def mutant_of(module: types.ModuleType, mutation: Mutation) -> types.ModuleType:
    """A second copy of the module with the mutation in it."""
    source = inspect.getsource(module)
    assert source.count(mutation.old) == 1, f"{mutation.name}: {mutation.old!r} occurs {source.count(mutation.old)} times"
    mutant = types.ModuleType(module.__name__)
    mutant.__file__ = module.__file__
    sys.modules[module.__name__] = mutant  # dataclasses look their module up
    try:
        exec(compile(source.replace(mutation.old, mutation.new), str(module.__file__), "exec"), vars(mutant))
    finally:
        sys.modules[module.__name__] = module
    return mutant


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The mutation is in force inside the with block."""
    module = importlib.import_module(mutation.module)
    mutated = functions(mutant_of(module, mutation))
    saved: list[tuple[types.FunctionType, types.CodeType]] = []
    for name, function in functions(module).items():
        code, other = function.__code__, mutated[name].__code__
        if (code.co_code, code.co_consts, code.co_names) != (other.co_code, other.co_consts, other.co_names):
            saved.append((function, code))
            function.__code__ = other
    assert saved, f"{mutation.name} changes nothing"
    try:
        yield
    finally:
        for function, code in saved:
            function.__code__ = code


def killed_by(mutation: Mutation, histories: int) -> tuple[int, str] | None:
    """The first seed whose history breaks a rule under the mutation, and which rule; None if none does."""
    number = [profile.name for profile in PROFILES].index(mutation.profile)
    profile = PROFILES[number]
    if mutation.faults:
        profile = replace(profile, faults=tuple(mutation.faults.split("+")))
    with applied(mutation):
        known = () if mutation.seed is None else (mutation.seed,)
        for seed in chain(known, range(number, histories * len(PROFILES), len(PROFILES))):
            try:
                World(seed, profile).run()
            except Exception as error:  # a crash of a machine is found as surely as a broken rule
                return seed, str(error).split("\n")[0] or type(error).__name__
    return None
