"""Offline: history → corpus → samples → LoRA → verdict. Runs in a child process of its own."""
