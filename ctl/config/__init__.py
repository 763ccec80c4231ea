"""What a node is configured to do: values, changes, differences and their text forms. Pure."""
