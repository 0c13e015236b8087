"""Wait for what another process pulls: no lock of its can be waited for, so by looking."""

from __future__ import annotations

import trio

from cafsfs.store.cache.partials import Following, Verdict
from cafsfs.store.cache.progress import Progress

# A holder that lives and brings nothing (stopped, hung) is left alone after this time: before its
# followers' readers lose their patience (30 s).
_STALLED = 15.0  # seconds
_GLANCE = 0.005, 0.1  # seconds between two looks: at first, at most


async def watch(
    following: Following, progress: Progress, *, limiter: trio.CapacityLimiter
) -> Verdict:
    """Wait for the end of it, or until it stands still; ``progress`` is told how far it is."""
    pause, longest = _GLANCE
    length = -1
    late = trio.current_time() + _STALLED
    shown = progress.show(following.descriptor, holds=0)
    while True:
        verdict = await trio.to_thread.run_sync(following.look, limiter=limiter)
        if verdict is not Verdict.MOVING or trio.current_time() > late:
            return verdict
        if following.length != length:
            length = following.length
            progress.come(length)
            if shown:
                progress.advance(length)
            late = trio.current_time() + _STALLED
        await trio.sleep(pause)
        pause = min(pause * 1.5, longest)
