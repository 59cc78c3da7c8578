"""Ways past a refusal: prompts in, attacked prompts or embeddings out."""
