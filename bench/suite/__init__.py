"""What all parts of `make bench` share: figures, measuring in turns, the report and its plots."""
