"""Tables that fit a width, and the keys of a terminal."""
