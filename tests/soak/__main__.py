"""``python -m tests.soak``: soak for so many minutes, and tell on standard output how it went."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from tests.fuse.mounted import remove_tree
from tests.soak.soaking import Plan, Soak

_EPOCH = 30.0  # seconds
_BESIDE = 300  # seconds beside those that were asked for, after which it is ended in any case


def main() -> int:
    """Soak; the exit code: 1 for a violation, 130 if it was stopped."""
    options = _parse_arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _leave_once)
    seconds = options.minutes * 60
    signal.alarm(int(seconds) + _BESIDE)
    plan = Plan(seconds=seconds, epoch=min(_EPOCH, seconds / 2), seed=options.seed)
    _tell(f"soaking for {options.minutes:g} min with --seed {plan.seed}")
    try:
        violations = _soak(plan)
    except KeyboardInterrupt:
        _tell("stopped; nothing is left behind")
        return 130
    except TimeoutError:
        violations = ["it did not end"]
    if violations:
        _tell(f"verdict: VIOLATED, with --seed {plan.seed}")
        for each in dict.fromkeys(violations):
            _tell(f"  {each}")
        return 1
    _tell("verdict: all held")
    return 0


def _soak(plan: Plan) -> list[str]:
    directory = Path(tempfile.mkdtemp(prefix="cafsfs-soak-"))
    (directory / "run").mkdir(mode=0o700)
    os.environ["CAFSFS_RUNTIME_DIR"] = str(directory / "run")
    log = ""
    with ExitStack() as stack:
        stack.callback(remove_tree, directory)
        soak = Soak(plan, directory, stack, _tell)
        try:
            soak.run()
        finally:
            log = (directory / "mount.log").read_text()
    if soak.judge.violations:
        kept = Path(tempfile.gettempdir()) / f"cafsfs-soak-{plan.seed}.log"
        kept.write_text(log)
        _tell(f"the log of the mount is in {kept}")
    return soak.judge.violations


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(1 << 32),
        help="choose the same troubles and blobs as a run before",
    )
    return parser.parse_args()


def _tell(line: str) -> None:
    print(line, flush=True)


def _leave_once(number: int, frame: FrameType | None) -> None:
    """Leave by way of all ``finally``; whoever is impatient must not interrupt that."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGALRM:
        raise TimeoutError
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
