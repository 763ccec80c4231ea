"""A pair under random faults for as long as one likes: `make soak MINUTES=60`.

`faults` strikes and heals, `ledger` remembers which changes were acknowledged, `__main__` runs the rounds and judges them.
"""
