"""How like the person a twin is: one measure a module, pure functions over texts, probabilities and records."""
