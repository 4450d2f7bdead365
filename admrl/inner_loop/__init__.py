"""Methods whose adaptation is a few policy-gradient steps: MAML (TRPO, PPO, with psi), ProMP, MAESN.

In here: the inner loop, the outer updates, their training, adapter and run folder. Imports `admrl.methods` and
below; no other baseline.
"""
