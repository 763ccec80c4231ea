"""Reads and writes flow maps, sweeps idle flows, attaches the program to interfaces."""
