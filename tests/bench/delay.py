"""A child of the bench: a long line to a server; each chunk comes so much later, either way.

It limits no bandwidth and keeps the order. A timer of asyncio may be up to a millisecond late.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

_CHUNK = 256 << 10  # bytes
# What is on the way at once, either way of a connection: 10 ms at the speed of loopback is less.
_ON_THE_WAY = 1024  # chunks


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float) -> None:
    """Hand on each chunk ``delay`` seconds after it came, and the end likewise."""
    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ON_THE_WAY)
    now = asyncio.get_running_loop().time

    async def fill() -> None:
        chunk = b"?"
        while chunk:
            with suppress(ConnectionError):
                chunk = b""  # what a broken connection ends with
                chunk = await source.read(_CHUNK)
            await line.put((now() + delay, chunk))

    async with asyncio.TaskGroup() as tasks:
        filling = tasks.create_task(fill())
        try:
            while (due := await line.get())[1]:
                await asyncio.sleep(due[0] - now())
                sink.write(due[1])
                await sink.drain()
            sink.write_eof()
        except OSError:  # the other side has gone
            filling.cancel()


async def main(address: str, delay: str) -> None:
    """Delay what goes to ``address`` and comes from it by so many seconds."""
    host, _, port = address.rpartition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(
                _forward(reader, far_writer, float(delay)),
                _forward(far_reader, writer, float(delay)),
            )
        finally:
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(
        f"delaying on 127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
