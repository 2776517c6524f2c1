"""Errors of this package."""

from __future__ import annotations


class SecurityError(Exception):
    """The secrets can't be made or applied; the message says why, one problem a line."""
