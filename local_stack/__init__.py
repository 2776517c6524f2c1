"""The stack of docker-compose.yaml without Docker."""
