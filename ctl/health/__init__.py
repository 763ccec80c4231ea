"""When to probe a backend, and when it is up or down. Pure; `probes` does the I/O."""
