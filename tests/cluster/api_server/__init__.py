"""A stand-in for the Kubernetes API server that unmodified kubectl and the official Python client accept."""

from tests.cluster.api_server.access import Call, User
from tests.cluster.api_server.errors import ApiError
from tests.cluster.api_server.faults import Fault
from tests.cluster.api_server.server import ApiServer

__all__ = ["ApiError", "ApiServer", "Call", "Fault", "User"]
