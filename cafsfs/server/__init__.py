"""The embedded server: wire protocol on one side, packed stores on the other."""

from cafsfs.server.gate import Gate
from cafsfs.server.limits import Limits
from cafsfs.server.listener import CafsServer

__all__ = ["CafsServer", "Gate", "Limits"]
