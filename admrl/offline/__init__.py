"""Methods that learn from recorded data of many tasks: MACAW.

In here: the data and who records it, the losses and the adaptation, their training, adapter and run folder. Imports
`admrl.methods` and below; no other baseline.
"""
