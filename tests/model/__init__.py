"""An executable model of the data plane: what it does with (packet, maps, lease, time). No BPF, and no code of the project that
decides anything about a packet; written from docs/DATAPLANE.md and the RFCs. tests/model/README.md says how it is used.
"""
