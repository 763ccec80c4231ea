"""VRRP advertisements between the two nodes: their bytes, and which of them are the peer's."""
