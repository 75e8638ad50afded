"""What a language model that cleans is told, one file a task; a user's own stand in data/prompts/."""
