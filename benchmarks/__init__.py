"""Measures the stack beside other balancers, in one run, and writes docs/benchmarks.md."""
