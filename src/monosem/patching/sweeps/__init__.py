"""Patch every cell, one at a time: the sweep and its fast and plain engines."""
