"""Path patching: from senders to receivers."""
