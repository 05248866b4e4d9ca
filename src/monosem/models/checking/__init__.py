"""Whether a model is read right: identities, and rows inferred for unknown architectures."""
