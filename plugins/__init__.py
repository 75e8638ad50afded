"""Thin NoneBot plugins; each is handed the assembled twin and never imports another."""
