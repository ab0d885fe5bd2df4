"""Models: loading them, and the one seam to TransformerLens' two model classes.

Only this room imports `transformer_lens`. Nothing here knows what a patch, a pair or a metric is.
"""
