"""xlbctl, the command people use: one file per noun, each turning arguments into one request and an answer into text."""
