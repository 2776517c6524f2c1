"""Health checks: their definition for Consul, and the same check by the registrar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import requests

from common.http import make_session
from registrar.tls import ServiceTls, open_channel

# A machine that pauses for a second must not remove all its replicas at once. The balancer's health probe ejects a
# replica that does not answer much earlier.
_FAILURES_BEFORE_CRITICAL = 3


@dataclass(frozen=True, kw_only=True)
class Check(ABC):
    """A health check of a service."""

    interval_seconds: float
    timeout_seconds: float

    def build_definition(self) -> dict[str, object]:
        """Builds the check by Consul's API page "Register Check", without its initial status."""
        return {
            **self._describe(),
            "Interval": _format_duration(self.interval_seconds),
            "Timeout": _format_duration(self.timeout_seconds),
            "FailuresBeforeCritical": _FAILURES_BEFORE_CRITICAL,
        }

    @abstractmethod
    def passes(self) -> bool:
        """Returns whether the service passes right now; never raises."""

    @abstractmethod
    def _describe(self) -> dict[str, object]: ...


@dataclass(frozen=True, kw_only=True)
class HttpCheck(Check):
    """Passes on an answer of 200 to 299, as Consul's HTTP check does."""

    url: str

    def passes(self) -> bool:
        """Gets the URL."""
        try:
            # Consul's own check does not use the environment's proxies either.
            with make_session() as client:
                response = client.get(self.url, timeout=self.timeout_seconds, stream=True)
                return 200 <= response.status_code < 300
        except requests.RequestException:
            return False

    def _describe(self) -> dict[str, object]:
        return {"Name": f"HTTP GET {self.url}", "HTTP": self.url}


@dataclass(frozen=True, kw_only=True)
class GrpcCheck(Check):
    """Passes on SERVING from the standard health service; no service name asks for the server as a whole."""

    target: str
    service: str
    tls: ServiceTls | None = None

    def passes(self) -> bool:
        """Asks the health service."""
        # Imported here because only gRPC checks need it.
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        request = health_pb2.HealthCheckRequest(service=self.service)
        try:
            # A channel of its own each time: a channel that failed to connect waits a second before it tries again.
            with open_channel(self.target, self.tls) as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=self.timeout_seconds)
        except (grpc.RpcError, OSError):
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _describe(self) -> dict[str, object]:
        endpoint = f"{self.target}/{self.service}" if self.service else self.target
        tls: dict[str, object] = {"GRPCUseTLS": False}
        if self.tls:
            # The agent's settings have the CA and the client's certificate (consul-start).
            tls = {"GRPCUseTLS": True, "TLSServerName": self.tls.name}
        return {"Name": f"gRPC health of {endpoint}", "GRPC": endpoint, **tls}


def _format_duration(seconds: float) -> str:
    """Formats seconds for Go's ``time.ParseDuration``, which Consul's API reads."""
    return f"{round(seconds * 1000)}ms"
