"""Which flows the peer has: the stream of blocks from the active node to its peer. Pure: bytes and numpy columns only."""
