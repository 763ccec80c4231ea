"""The data plane: C programs, the child that compiles them, and the only Python that touches BPF objects.

Imports neither `ctl` nor `sync`.
"""
