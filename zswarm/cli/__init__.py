"""The command line: what users type, and how what goes wrong is told to them."""
