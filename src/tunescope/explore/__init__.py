"""A page on live models of a run: one prompt at a time, what it looks like inside them, and what changes do."""
