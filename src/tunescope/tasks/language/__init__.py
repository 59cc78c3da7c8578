"""Prompts in natural language, and how answers to them are read."""
