from __future__ import annotations
def read_all(config, family): raise NotImplementedError
