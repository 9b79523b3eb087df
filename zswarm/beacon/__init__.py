"""Machines that find each other, and the runs that want them: before, between and beside the runs themselves."""
