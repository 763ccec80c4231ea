"""What can happen on a node, as values: types, history of the last events, limits that are watched. Pure."""
