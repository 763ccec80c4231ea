"""Which farm configuration both nodes have, and which version wins. Pure."""
