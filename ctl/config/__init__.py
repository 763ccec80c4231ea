"""The configuration: values, changes, differences, and their file formats. Pure."""
