"""Packed blobs: the 16-byte header, the three codecs, and the hash that names content; no I/O."""

from cafsfs.packing.hashing import Hasher, hash_bytes, hash_file
from cafsfs.packing.header import HEADER_LENGTH, Compression, Header
from cafsfs.packing.pack import ENCODER_MEMORY, Packer, choose_compression
from cafsfs.packing.unpack import Unpacker, UnpackLimits, foresee_memory
from cafsfs.packing.verify import VerifyingUnpacker, unpack_whole

__all__ = [
    "ENCODER_MEMORY",
    "HEADER_LENGTH",
    "Compression",
    "Hasher",
    "Header",
    "Packer",
    "UnpackLimits",
    "Unpacker",
    "VerifyingUnpacker",
    "choose_compression",
    "foresee_memory",
    "hash_bytes",
    "hash_file",
    "unpack_whole",
]
