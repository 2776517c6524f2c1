"""Servers with the default options of their libraries, one of each kind."""
