"""Interventions: a model with something changed inside, in place and back; one file each."""
