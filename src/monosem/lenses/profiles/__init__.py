"""One number a layer: entropy, token gap, languages, trajectories."""
