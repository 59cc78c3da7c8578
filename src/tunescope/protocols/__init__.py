"""Protocols: the ways in which a model is made to refuse."""
