"""Where each site lives in the native modules, and the weights that compute it."""
