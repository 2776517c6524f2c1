"""The gRPC client: calls Ping, alone or many times, and reports."""
