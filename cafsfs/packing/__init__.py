"""Packed blobs: the 16-byte header, the three codecs, and the hash that names content; no I/O."""

from cafsfs.packing.hashing import Hasher, hash_bytes, hash_file
from cafsfs.packing.header import HEADER_LENGTH, Compression, Header
from cafsfs.packing.pack import Packer, choose_compression
from cafsfs.packing.unpack import Unpacker, UnpackLimits
from cafsfs.packing.verify import VerifyingUnpacker

__all__ = [
    "HEADER_LENGTH",
    "Compression",
    "Hasher",
    "Header",
    "Packer",
    "UnpackLimits",
    "Unpacker",
    "VerifyingUnpacker",
    "choose_compression",
    "hash_bytes",
    "hash_file",
]
