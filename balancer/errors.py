"""The errors that other programs cause."""


class BalancerError(Exception):
    """Another program is out of reach, or did not do its part."""


class ForbiddenError(BalancerError):
    """Consul's ACL system refuses a request."""


class RefusedError(BalancerError):
    """nginx does not take a document."""
