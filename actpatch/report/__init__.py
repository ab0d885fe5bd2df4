"""Results and figures as pages of a report.

Nothing here runs a model or computes a number that results do not have.
"""
