"""What is measured on logits: one number per run, and what of the logits each metric reads.

Nothing here knows how the logits were made, or which dataset the answers come from.
"""
