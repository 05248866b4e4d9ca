"""Sets of cells patched together, and what that says: evidence, backups."""
