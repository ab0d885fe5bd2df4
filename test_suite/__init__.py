"""The tests, by subject. `tests.py` collects them."""
