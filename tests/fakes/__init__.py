"""Strict stand-ins for the kernel: they refuse what the kernel would refuse, and more."""
