"""Heads that copy, and the concept and token lenses made of them."""
