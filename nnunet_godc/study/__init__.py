"""Studies: what to train, where to run it, what came out. Loads no torch itself."""
