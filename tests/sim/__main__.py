"""`python -m tests.sim SEEDS` plays histories; `python -m tests.sim --replay SEED` plays one and prints it."""

from __future__ import annotations

import sys
import time

from tests.sim.world import Violation, World


def replay(seed: int) -> int:
    world = World(seed)
    try:
        world.run()
    except Violation as error:
        print("\n".join(world.history))
        print(error)
        return 1
    print("\n".join(world.history))
    print(f"seed {seed}: no rule broken")
    return 0


def main(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "--replay":
        return replay(int(arguments[1]))
    if len(arguments) not in (1, 2) or not all(word.isdigit() for word in arguments):
        print("usage: python -m tests.sim SEEDS [FIRST] | --replay SEED", file=sys.stderr)
        return 2
    count, first = int(arguments[0]), int(arguments[1]) if len(arguments) == 2 else 0
    began, failed = time.monotonic(), 0
    for seed in range(first, first + count):
        try:
            World(seed).run()
        except Violation as error:
            failed += 1
            print(f"\nseed {seed}: {error}")
        done = seed - first + 1
        if done % 50 == 0 or done == count:
            rate = done / (time.monotonic() - began)
            print(f"\r{done}/{count} histories, {failed} failed, {rate:.0f}/s ", end="", flush=True)
    print()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
