"""MQL (Fakoor et al. 2020): TD3 with a recurrent context, adapted by propensity-weighted replay.

In here: its networks, losses, training, adaptation, adapter and run folder. Imports `admrl.methods` and below; no
other baseline.
"""
