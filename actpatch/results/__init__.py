"""Numbers with what is needed to read them: sweeps, their shapes, their tables, their files.

Nothing here runs a model or draws a figure.
"""
