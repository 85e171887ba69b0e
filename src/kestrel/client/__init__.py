"""The user's side: an asynchronous client of a manager."""

from kestrel.client.client import Client, RequestError, Submission

__all__ = ["Client", "RequestError", "Submission"]
