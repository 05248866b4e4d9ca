"""Causal scrubbing: hypotheses tested by resampling."""
