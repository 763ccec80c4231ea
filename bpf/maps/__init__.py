"""BPF maps behind file descriptors: single elements, batches, columns and ring buffers."""
