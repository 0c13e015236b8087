"""The asyncio client from PyPI, in a process of its own.

``python -m tests.server.asyncio_peer`` takes a request as JSON on standard input and answers with
JSON on standard output. Requests: ``upload`` (paths, compression), ``download`` (hashes to paths),
``look`` (hashes).
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from cafs_cache_cdn_client.cafs import CAFSClient, CompressionT


async def _obey(request: dict[str, Any]) -> object:
    client = CAFSClient("/root", [request["server"]], connection_per_server=3)
    async with client:
        match request["do"]:
            case "upload":
                paths = [Path(each) for each in request["paths"]]
                compression = CompressionT(request["compression"].encode())
                first = await client.stream(paths[0], compression, retry=False)
                rest = await client.stream_batch(paths[1:], compression, retry=False)
                return [first, *rest]
            case "download":
                blobs = [(name, Path(path)) for name, path in request["blobs"].items()]
                await client.pull(*blobs[0], retry=False)
                await client.pull_batch(blobs[1:], retry=False)
                return len(blobs)
            case "look":
                there = {name: await client.check(name, retry=False) for name in request["hashes"]}
                return {
                    name: await client.size(name, retry=False) if present else None
                    for name, present in there.items()
                }
    raise ValueError(f"do what? {request}")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_obey(json.load(sys.stdin)))))
