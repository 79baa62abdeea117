"""A client library of the service. `python -m serving.client` is its command line."""

from serving.client.answers import Alternative, Answer, Result, ServiceError
from serving.client.client import Client, Retries

__all__ = ["Alternative", "Answer", "Client", "Result", "Retries", "ServiceError"]
