"""Slow and plain ways to what the library computes, written apart from it: what tests compare its numbers with.

Here belong reference implementations alone: full hooked runs, loops that are obvious, formulas by hand, and calls of
other libraries. They use nothing of what they check. Models, prompts and made-up results are in `test_suite/helpers/`.
"""
