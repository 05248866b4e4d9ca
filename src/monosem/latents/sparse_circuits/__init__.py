"""Sparse feature circuits: latents and errors of several dictionaries, and what each gives to each."""
