"""The daemon's core: a message in, an answer as one chosen person would give it, out."""
