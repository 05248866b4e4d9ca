"""One pass or generation: what goes in, the hooks for its length, what it leaves behind."""
