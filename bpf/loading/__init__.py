"""Compiles, loads and pins the program and its maps; adopts what is pinned already."""
