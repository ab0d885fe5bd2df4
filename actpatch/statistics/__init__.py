"""How sure numbers are: arrays in, intervals and p-values out.

Nothing here knows what a model, a pair of prompts or a patch is.
"""
