"""Probes of backends: their source addresses, their I/O, and the loop that runs what is due."""
