"""The data plane on the running kernel: maps read and written in bulk, the program on its interfaces."""
