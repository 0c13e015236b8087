"""``-o``, as mount(8) and fstab give it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cafsfs.config.layers import Layer, gathered, parse_value, unknown_option
from cafsfs.config.options import FOR_UPLOADS, IN_MOUNT_OPTIONS, option_names
from cafsfs.config.values import parse_bool, parse_path

# What mount(8) and fstab pass along that says nothing to us; the mount is read-only, nosuid and
# nodev whatever is asked.
_IGNORED = frozenset(
    """
    rw ro defaults auto noauto user users nouser owner group nofail exec suid dev nosuid nodev async
    sync silent loud relatime norelatime atime strictatime nostrictatime lazytime
    nolazytime iversion noiversion mand nomand default_permissions comment subtype
    diratime nodiratime symfollow nosymfollow
    """.split()  # noqa: SIM905  # a list of forty strings would fill the page
)
# Flags of `cafsfs mount` that no other layer has, and what they take.
_FLAGS_ONLY: Mapping[str, Callable[[str], object]] = {
    "config": parse_path,
    "foreground": parse_bool,
}
# fusermount3 does not know nodiratime and nosymfollow; there are no times to update, and no links.
_PASSED = frozenset({"noexec", "noatime", "dirsync"})
# What mount(8) finds in mountinfo, and repeats when it remounts.
_OF_THE_KERNEL = frozenset({"user_id", "group_id", "max_read", "blksize"})


@dataclass(frozen=True, slots=True)
class MountArguments:
    """``-o`` taken apart: our options, and what the kernel is told as it is.

    ``remount``: what is mounted there is to be changed, and nothing mounted.
    """

    layer: Layer
    kernel: tuple[str, ...]
    remount: bool = False


def parse_mount_options(texts: Sequence[str], *, sloppy: bool = False) -> MountArguments:
    r"""Read ``-o a,b=c`` (a comma in a value is written ``\,``).

    Raises UsageError for an option that nobody knows, unless ``sloppy`` (mount -s). The values
    are checked when they are resolved, but those of ``config`` and ``foreground`` here: they
    belong to no group.
    """
    ours: list[tuple[str, str]] = []
    kernel: list[str] = []
    known = {*option_names(*IN_MOUNT_OPTIONS), *_FLAGS_ONLY}
    known -= FOR_UPLOADS
    parts = [
        part.replace("\\,", ",")
        for text in texts
        for part in re.findall(r"(?:[^,\\]|\\.|\\\Z)+", text, re.DOTALL)
    ]
    remount = "remount" in parts
    ignored = _IGNORED | {"remount"} | (_OF_THE_KERNEL if remount else frozenset())
    for part in parts:
        key, equals, value = part.partition("=")
        name = key.replace("-", "_")
        if name in known:
            ours.append((name, value if equals else "true"))
            if name in _FLAGS_ONLY:
                parse_value(_FLAGS_ONLY[name], *ours[-1], "-o")
        elif key in _PASSED:
            kernel.append(key)
        elif key in ignored or key.startswith(("x-", "X-", "_")):
            continue
        elif not sloppy:
            raise unknown_option(key, sorted(known), "-o")
    return MountArguments(Layer("-o", gathered(ours)), tuple(dict.fromkeys(kernel)), remount)
