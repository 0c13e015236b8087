"""AES-128-CTR as a stream that knows where it is."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

_BLOCK = 16  # bytes
_COUNTERS = 1 << 128


class Keystream:
    """One direction of an encrypted connection; the same deed encrypts and decrypts.

    It must stand where the connection stands, byte for byte. Who has encrypted more than the
    socket then took goes back by the rest: bytes that never travelled have used up nothing.
    """

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._key = key
        self._first = int.from_bytes(iv, "big")  # counter of the first block
        self.position = 0  # bytes from the beginning
        self._context = self._start(0)

    def __repr__(self) -> str:
        return f"<Keystream at {self.position}>"

    def apply(self, data: bytes | memoryview, out: memoryview) -> None:
        """Encrypt or decrypt ``data`` into as many bytes of ``out``, which may be ``data`` itself.

        100 µs for 1 MiB where the processor knows AES; the GIL is released meanwhile.
        """
        self._context.update_into(data, out)
        self.position += len(data)

    def convert(self, data: bytes) -> bytes:
        """``apply`` for a few bytes."""
        self.position += len(data)
        return self._context.update(data)

    def go_back(self, count: int) -> None:
        """Be ``count`` bytes further back; costs 4 µs."""
        if count == 0:
            return
        if not 0 < count <= self.position:
            raise ValueError(f"{count} bytes back from {self.position}")
        self.position -= count
        block, rest = divmod(self.position, _BLOCK)
        self._context = self._start(block)
        self._context.update(bytes(rest))

    def _start(self, block: int) -> CipherContext:
        counter = (self._first + block) % _COUNTERS
        mode = modes.CTR(counter.to_bytes(_BLOCK, "big"))
        return Cipher(algorithms.AES(self._key), mode).encryptor()
