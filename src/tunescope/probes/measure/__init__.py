"""Probes: from a view of a model to records and scores, one file each."""
