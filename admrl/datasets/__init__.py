"""Logged transitions as files of other programs, out and in, and models that are fitted to them."""
