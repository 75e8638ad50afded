"""The twin as an API, without HTTP: requests of OpenAI's chat completions, understood and answered."""
