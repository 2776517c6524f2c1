"""Shared by tests and benchmarks: processes, stacks, balancers, calls and loads."""
