"""TransformerLens's calls and names, on native models."""
