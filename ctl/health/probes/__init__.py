"""Probes of backends: source addresses, I/O, and the loop that runs due probes."""
