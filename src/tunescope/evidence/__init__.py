"""Evidence: the table of measurements and what is concluded from it."""
