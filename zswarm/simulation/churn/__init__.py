"""Swarms whose workers come and go for hours: what rebalancing is worth, at the level of rates and downloads."""
