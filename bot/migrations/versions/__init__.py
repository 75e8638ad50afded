"""One file a change of the archive's schema, in order."""
