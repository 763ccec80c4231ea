"""The table of routes, and what follows from it."""
