"""`paretune reward`: data as the library reads it in, a reward model that transformers loads out."""
