"""The node's network as the daemon uses it: the protocol, VIP addresses, neighbours; `kernel` implements it."""
