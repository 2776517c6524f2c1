"""What the tool finder raises."""

from local_stack.errors import LocalStackError


class ToolError(LocalStackError):
    """A tool was not found; the message has one line for each way that was tried, and what to install."""


class UnavailableError(LocalStackError):
    """A tool is unavailable by one of the ways to get it; the message is the reason, on one line."""
