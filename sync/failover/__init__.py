"""Which node of the pair is active, until when, and with which epoch. Pure: no sockets, clocks, files or kernel."""
