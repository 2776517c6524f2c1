"""Shared by all programs: environment variables, names, log lines, Consul's HTTP API."""
