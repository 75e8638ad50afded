"""The project's own figures: one file a bench, each figure beside its peer in the same run."""
