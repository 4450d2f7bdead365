"""RL2: a recurrent policy whose hidden state is all that adapts to a task.

In here: the network, its loss, trials and training, adapter and run folder. Imports `admrl.methods` and below; no
other baseline.
"""
