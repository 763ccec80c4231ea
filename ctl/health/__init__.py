"""Which backend to probe when, and when it counts as up or down. Pure; `probes` asks the backends."""
