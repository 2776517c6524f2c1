"""The errors that other programs cause."""


class BalancerError(Exception):
    """Another program is out of reach, or did not do its part."""


class RefusedError(BalancerError):
    """nginx does not take a document."""
