"""The Trio client library: servers, connections, pools, and the store behind a server."""

from cafsfs.client.client import BatchError, CafsClient, full_stat
from cafsfs.client.remote import RemoteStore
from cafsfs.client.servers import DEFAULT_PORT, Deadlines, Server

__all__ = [
    "DEFAULT_PORT",
    "BatchError",
    "CafsClient",
    "Deadlines",
    "RemoteStore",
    "Server",
    "full_stat",
]
