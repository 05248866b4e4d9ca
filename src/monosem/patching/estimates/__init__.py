"""First-order estimates of sweeps, and their comparison with the exact sweep."""
