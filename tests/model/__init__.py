"""An executable model of the data plane: what it does with (packet, maps, lease, time). No BPF, and no code of the project that
decides anything about a packet. Begin with state.py and datapath.py; README.md has the order, and what the other files do.
"""
