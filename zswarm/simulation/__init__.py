"""The same machines under a virtual clock and a hostile network."""
