"""A random walk through experiments: `python -m test_suite.fuzz` (`make fuzz`). The suite has a fixed sample of it."""
