"""The Trio client library: servers, connections, pools, and the store behind a server."""

from cafsfs.client.client import BatchError, CafsClient, Upload, full_stat
from cafsfs.client.remote import RemoteStore
from cafsfs.client.servers import DEFAULT_PORT, Deadlines, Member, Server
from cafsfs.store.router import PlaceState

__all__ = [
    "DEFAULT_PORT",
    "BatchError",
    "CafsClient",
    "Deadlines",
    "Member",
    "PlaceState",
    "RemoteStore",
    "Server",
    "Upload",
    "full_stat",
]
