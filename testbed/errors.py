"""The errors that end a measurement."""


class BenchmarkError(Exception):
    """A measurement is not possible; the message says why."""


class MissingError(BenchmarkError):
    """A program that only one row needs is not installed, and the row says so."""
