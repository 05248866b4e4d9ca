"""The localisation job: sweep, noising check, heads, backups, one report."""
