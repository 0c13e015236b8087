"""All checks, in the order in which a mount would need them."""

from __future__ import annotations

from cafsfs.doctor import machine, neighbours, servers, storage
from cafsfs.doctor.apart import Check

_NETWORK = servers.PATIENCE + 5  # seconds; all side by side

CHECKS = (
    Check("device", machine.look_at_device),
    Check("fusermount3", machine.look_at_fusermount3),
    Check("allow-other", machine.look_at_allow_other),
    Check("fusectl", machine.look_at_fusectl),
    Check("request timeouts", machine.look_at_request_timeouts),
    Check("background requests", machine.look_at_background),
    Check("descriptors", machine.look_at_descriptors),
    Check("kernel and mount", machine.look_at_live_kernel),
    Check("cache rights", storage.look_at_cache_rights),
    Check("cache room", storage.look_at_cache_room),
    Check("cache disk", storage.look_at_cache_disk),
    Check("seed", storage.look_at_seed),
    Check("secret", servers.look_at_secret),
    Check("root", servers.look_at_directory),
    Check("servers", servers.look_at_servers, _NETWORK),
    Check("mounts", neighbours.look_at_mounts),
    Check("mount(8)", neighbours.look_at_helper),
    Check("updatedb", neighbours.look_at_updatedb),
    Check("units", neighbours.look_at_units),
    Check("failed units", neighbours.look_at_failed_units),
)
