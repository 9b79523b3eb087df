"""Which worker belongs into which stage: pure decisions of the coordinator, for newcomers and for those who are in."""
