"""The command line as a whole: its group, its errors, its exit codes.

0 done, 1 failed, 2 usage; 3 where a command says so. Standard output is data, standard error is
talk. An error is one line, and a hint where we know what to do.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

from cafsfs.cli.bugreport import bugreport
from cafsfs.cli.cache.group import cache
from cafsfs.cli.completion import completion
from cafsfs.cli.dashboard import dashboard
from cafsfs.cli.demo import demo
from cafsfs.cli.doctor import doctor
from cafsfs.cli.help import help_
from cafsfs.cli.inquire import check, stat
from cafsfs.cli.mount import mount
from cafsfs.cli.prefetch import prefetch
from cafsfs.cli.reload import reload_
from cafsfs.cli.serve import serve
from cafsfs.cli.settings import config
from cafsfs.cli.status import mounts, status
from cafsfs.cli.talk import complain, exit_code, in_our_words
from cafsfs.cli.transfer import cat, get, put
from cafsfs.cli.unmount import unmount
from cafsfs.errors import CafsError, StoreError

log = logging.getLogger(__name__)

_INTERRUPTED = 128 + signal.SIGINT


# click before 8.2 shows its help without being asked, and without an error.
_NoArguments: type[click.UsageError] | tuple[()] = getattr(
    click.exceptions, "NoArgsIsHelpError", ()
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cafsfs", prog_name="cafsfs")
def cafsfs() -> None:
    """Mount a CAFS blob store as a directory.

    A path named by a hash is the blob with that hash. Opening it pulls it from a server into a
    local cache; from then on it is an ordinary, read-only, immutable file.

    \b
    Try it:       cafsfs demo
    A server:     mkdir -p store/data; cafsfs serve store
    Files to it:  cafsfs put cafs://127.0.0.1/data FILE…
    Mount it:     mkdir /mnt/cafs; cafsfs mount cafs://127.0.0.1/data /mnt/cafs
    Read it:      cat /mnt/cafs/HASH
    Guides:       cafsfs help
    """


for command in (
    *(
        mount,
        unmount,
        status,
        mounts,
        reload_,
        put,
        get,
        cat,
        check,
        stat,
        prefetch,
        cache,
        serve,
        dashboard,
        config,
        doctor,
        bugreport,
        completion,
        help_,
        demo,
    ),
):
    cafsfs.add_command(command)


def main() -> None:
    """Entry point of ``cafsfs``."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run one command; returns its exit code, having said on standard error what went wrong."""
    try:
        cafsfs.main(args=arguments, prog_name="cafsfs", obj=arguments, standalone_mode=False)
    except CafsError as error:
        complain(error)
        return exit_code(error)
    except _NoArguments as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        complain(in_our_words(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        # Who reads us has gone; let the interpreter's last flush not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of which nobody below has said what it is about
        log.debug("%s", error, exc_info=True)
        named = (
            f"`{os.fsdecode(error.filename)}`: " if isinstance(error.filename, str | bytes) else ""
        )
        complain(StoreError(f"{named}{error.strerror or error}"))
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
