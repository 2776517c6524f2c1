"""What can go wrong outside of the control plane."""


class BalancerError(Exception):
    """Another program did not do what was asked, or is out of reach; the message says so."""


class RefusedError(BalancerError):
    """nginx is there, and does not take what it was given."""
