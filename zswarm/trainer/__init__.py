"""The trainer: coordinator machine, run folder, service."""
