"""Attacks: ways to get an answer out of a model that should refuse, one file each."""
