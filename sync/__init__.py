"""Everything between the two nodes: wire codec, failover, replication, transports.

Imports neither `ctl` nor `bpf`.
"""
