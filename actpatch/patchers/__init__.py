"""What a user calls: an experiment is put together from a dataset and arguments, run, and given its shape.

Nothing here runs a model itself, and nothing draws.
"""
