"""What is written, and where: sources of values, noise, and the choice of sites.

Interventions are values that are described here and executed by the engine. Nothing here runs a model.
"""
