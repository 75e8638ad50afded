"""The `twin` command line, a file for each group of commands. Whatever is heavy is imported when a command runs."""
