"""Protocols: the ways in which a model is fine-tuned, one file each."""
