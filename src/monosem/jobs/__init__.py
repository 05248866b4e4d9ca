"""What long jobs share: checkpoints, interrupts, journals."""
