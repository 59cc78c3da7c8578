"""Tasks: where prompts come from, what is wanted of them, and what a model did."""
