"""One file per source format, found by content: a path → messages, and what was left out and why."""
