"""How long work runs, reports and stops."""
