"""xlb-web: the HTTP API and the page of a node, in a process of its own that keeps no truth."""
