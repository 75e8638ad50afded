"""From a training run to the files llama.cpp serves, and the proof that they are equal."""
