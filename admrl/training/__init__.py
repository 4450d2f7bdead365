"""Adversarial meta-training, Alg. 1."""
