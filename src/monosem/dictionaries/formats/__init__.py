"""One small file a checkpoint format: how to recognise it, how to read it into the canonical form, how to write it."""
