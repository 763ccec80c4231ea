"""Which node of the pair serves, for how long, and under which epoch. Pure: no sockets, clocks, files or kernel."""
