"""A run is a folder, whatever trained in it."""
