"""Servers that nobody here tuned: one of each kind, with default options."""
