"""Records: tidy tables of measurements and scores, with intervals; nothing is judged here."""
