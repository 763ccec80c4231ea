"""xlbctl, the command line: one module per noun. Each sends one request to xlbd and prints the answer."""
