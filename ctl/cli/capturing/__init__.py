"""`xlbctl capture`."""
