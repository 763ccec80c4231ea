"""xlbd and xlbctl: model, configuration, planning, health, API, and all side effects outside the BPF objects."""
