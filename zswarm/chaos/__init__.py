"""A run whose processes are killed and frozen at random, and what it made of that."""
