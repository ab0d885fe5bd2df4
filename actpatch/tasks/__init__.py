"""Prompt pairs: datasets, the tasks that are generated, files of one's own, and their checked, tokenized form.

Nothing here runs a model; of a model only the tokenizer and the sizes of its vocabulary and context are asked.
"""
