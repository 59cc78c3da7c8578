"""Study: stages, the graph of a study, and the folder that it runs in."""
