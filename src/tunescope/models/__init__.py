"""Models: genuine transformers architectures, where to look inside them, and how they are stored."""
