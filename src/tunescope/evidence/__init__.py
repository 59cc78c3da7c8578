"""Evidence: claims, and what is concluded about them from the scores."""
