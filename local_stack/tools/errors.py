"""What the tool finder raises."""

from local_stack.errors import LocalStackError


class ToolError(LocalStackError):
    """A tool was not found; the message has one line for each way that was tried, and what to install."""


class UnavailableError(LocalStackError):
    """One way to get a tool does not lead to it; the message is the reason, on one line."""
