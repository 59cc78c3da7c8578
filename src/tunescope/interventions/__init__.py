"""Interventions: a model with something changed inside, as a context manager."""
