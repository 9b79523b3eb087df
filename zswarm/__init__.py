"""SWARM parallelism as a message-queue pipeline on ZeroMQ."""

__version__ = "0.1.0"
