"""Sweeps that outlast a machine: planned, stored unit by unit in a folder, resumed, and spread over workers.

Units are ordinary sweeps of some pairs and some patches; the folder is the only state. `python -m actpatch.runs` works
on a folder from a terminal.
"""
