"""Circuits found, run, judged and compared: everything about one that needs runs of the model.

What a circuit is stands in `core.circuits`, what comes out of this room in `results`. Nothing here draws.
"""
