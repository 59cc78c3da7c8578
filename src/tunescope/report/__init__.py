"""Report: records in, figures and one page out."""
