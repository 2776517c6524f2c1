"""What tests and benchmarks share: programs that are started and ended, stacks, balancers, callers."""
