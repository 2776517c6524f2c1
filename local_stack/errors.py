"""What local_stack raises."""


class LocalStackError(Exception):
    """The stack can't do what was asked; the message says why and what to do."""
