"""The errors that end a measurement."""


class BenchmarkError(Exception):
    """A measurement is impossible; the message says why."""


class MissingError(BenchmarkError):
    """A program of one row is not installed, and the row says so."""
