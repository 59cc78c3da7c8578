"""Probes: tensors in, small frozen results out."""
