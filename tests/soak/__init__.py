"""Random calls by the thousand, and calls that are disturbed: ``python -m tests.soak --help``."""
