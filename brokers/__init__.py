"""The broker of a stage: its queue machine and its service."""
