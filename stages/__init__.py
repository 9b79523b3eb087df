"""The worker: its machines, compute thread, and the models cut into stages."""
