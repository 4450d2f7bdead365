"""One page a command: its options, its checks, what it does. May import all; only `admrl.cli` imports it.

A page imports nothing heavy at its top (what computes is imported by `prepare` and `execute`), so that --help and
mistakes are answered at once.
"""
