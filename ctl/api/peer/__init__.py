"""What the commands know of the peer: its answers, and what it may ask here."""
