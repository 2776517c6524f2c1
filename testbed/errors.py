"""What ends a measurement."""


class BenchmarkError(Exception):
    """A measurement can't be made; the message says why."""


class MissingError(BenchmarkError):
    """A program that only one candidate needs is not installed; its row says so."""
