"""How fast is a sweep, and are its numbers the same?  `make bench` measures it; README.md says how."""
