"""Results as Plotly figures.

Figures read results and are returned, never shown; nothing here runs a model.
"""
