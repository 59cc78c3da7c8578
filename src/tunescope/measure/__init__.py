"""Measure: every probe of a model and of its change from the base; models and prompts in, records and scores out."""
