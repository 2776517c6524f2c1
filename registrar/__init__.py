"""Registers a service with its local Consul agent and keeps it registered."""
