"""Patchscopes: an activation read by putting it into another prompt."""
