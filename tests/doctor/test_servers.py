"""Can servers be reached, and do they let us in? Real servers, good and bad."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.config.options import CacheOptions, StoreOptions
from cafsfs.config.uri import parse_uri
from cafsfs.digest import Digest
from cafsfs.doctor import servers
from cafsfs.doctor.case import Verdict
from tests.bad_server import BadServerProcess, Fault, Phase
from tests.cli.running import Serving
from tests.doctor.conftest import CaseMaker, only, seen

pytestmark = pytest.mark.process

_LATER = """
import sys, time
now = time.time
time.time = lambda: now() + 3600
from cafsfs.cli import main
main()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("server"))
    yield serving
    serving.stop()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write_secret(tmp_path / "secret", "0123456789abcdef")


def write_secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def cached(cache: Path, digest: Digest) -> CacheOptions:
    """A cache that has a blob, by its name; nobody reads it."""
    path = cache / "blobs" / digest.hex[:2] / digest.hex[2:4] / digest.hex
    path.parent.mkdir(parents=True)
    path.touch()
    (path.parent / "no hash").touch()
    return CacheOptions(cache_dir=cache)


def test_without_a_store_nothing_is_said(case: CaseMaker) -> None:
    for look in (servers.look_at_servers, servers.look_at_directory, servers.look_at_secret):
        assert seen(look, case()) == []


def test_a_good_server(server: Serving, case: CaseMaker, tmp_path: Path) -> None:
    digest = server.put(tmp_path, b"content" * 1000)
    examined = case(uri=parse_uri(server.uri), cache=cached(tmp_path / "cache", digest))
    (_, reached, _), (_, ranges, _) = found = seen(servers.look_at_servers, examined)
    assert {verdict for verdict, _, _ in found} == {Verdict.FINE}
    assert reached.startswith(f"{server.address} speaks version 001, ")
    assert ranges == f"ranges of {server.address} are sound"


def test_ranges_are_untested_where_no_blob_is_known(server: Serving, case: CaseMaker) -> None:
    _, (verdict, text, _) = seen(servers.look_at_servers, case(uri=parse_uri(server.uri)))
    assert verdict is Verdict.FINE
    assert "are untested" in text


def test_a_blob_that_is_too_short_tells_nothing_of_ranges(
    server: Serving, case: CaseMaker, tmp_path: Path
) -> None:
    digest = server.put(tmp_path, b"")
    examined = case(uri=parse_uri(server.uri), cache=cached(tmp_path / "cache", digest))
    _, (_, text, _) = seen(servers.look_at_servers, examined)
    assert "are untested" in text


def test_a_deployed_server_has_unsound_ranges(case: CaseMaker, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content" * 1000)
    with BadServerProcess() as deployed:
        digest = Digest.parse(deployed.put(source))
        uri = parse_uri(f"cafs://{deployed.address}/data")
        examined = case(uri=uri, cache=cached(tmp_path / "cache", digest))
        _, (verdict, text, _) = seen(servers.look_at_servers, examined)
    assert verdict is Verdict.ADVICE
    assert text.startswith(f"ranges of {deployed.address} are unsound")


def test_each_of_a_group_is_told_of_in_order(server: Serving, case: CaseMaker) -> None:
    uri = parse_uri(f"cafs://127.0.0.1:1,{server.address}/data")
    found = seen(servers.look_at_servers, case(uri=uri))
    assert [verdict for verdict, _, _ in found] == [Verdict.BROKEN, Verdict.FINE, Verdict.FINE]
    assert found[0][1] == "cannot connect to 127.0.0.1:1: Connection refused"
    assert "is a server running there?" in found[0][2]


def test_a_server_that_greets_nobody(case: CaseMaker) -> None:
    with BadServerProcess() as silent:
        silent.fault(Phase.GREETING, Fault(then="stall"))
        uri = parse_uri(f"cafs://{silent.address}/data")
        examined = case(uri=uri, store=StoreOptions(connect_timeout=0.3))
        verdict, text, _ = only(servers.look_at_servers, examined)
    assert verdict is Verdict.BROKEN
    assert text == f"no greeting from {silent.address} within 0.3 s"


def test_a_server_that_is_too_slow_silences_no_other(
    server: Serving, case: CaseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PATIENCE", 1.5)
    with BadServerProcess() as silent:
        silent.fault(Phase.GREETING, Fault(then="stall"))
        uri = parse_uri(f"cafs://{silent.address},{server.address}/data")
        examined = case(uri=uri, store=StoreOptions(connect_timeout=60))
        (verdict, text, _), *others = seen(servers.look_at_servers, examined)
    assert verdict is Verdict.BROKEN
    assert text == f"{silent.address} is too slow: not seen within 1.5 s"
    assert {verdict for verdict, *_ in others} == {Verdict.FINE}


# --- secrets and clocks


@contextmanager
def guarded(directory: Path, secret: Path, *program: str) -> Iterator[str]:
    """The URI of a server with a secret."""
    (directory / "store/data").mkdir(parents=True)
    command = [*(program or (sys.executable, "-m", "cafsfs")), "serve", str(directory / "store")]
    command += ["--listen", "127.0.0.1:0", "--secret-file", str(secret)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(each for each in process.stderr if " serving " in each)
        yield f"cafs://{line.split()[-1]}/data"
        process.terminate()
        process.stderr.read()


def test_a_server_that_shares_our_secret(case: CaseMaker, tmp_path: Path, secret: Path) -> None:
    with guarded(tmp_path, secret) as uri:
        examined = case(uri=parse_uri(uri), store=StoreOptions(secret_file=secret))
        assert only(servers.look_at_secret, examined)[0] is Verdict.FINE
        (verdict, text, _), _ = seen(servers.look_at_servers, examined)
        assert verdict is Verdict.FINE
        assert "speaks version 002" in text
        verdict, text, fix = only(servers.look_at_servers, case(uri=parse_uri(uri)))
    assert verdict is Verdict.BROKEN
    assert text.endswith("demands authentication, and we have no secret")
    assert "--secret-file" in fix


def test_a_server_with_another_secret(case: CaseMaker, tmp_path: Path, secret: Path) -> None:
    other = write_secret(tmp_path / "other", "fedcba9876543210")
    with guarded(tmp_path, other) as uri:
        examined = case(uri=parse_uri(uri), store=StoreOptions(secret_file=secret))
        verdict, text, _ = only(servers.look_at_servers, examined)
    assert verdict is Verdict.BROKEN
    assert text.endswith("has another secret than we have")


def test_a_server_whose_clock_is_off(case: CaseMaker, tmp_path: Path, secret: Path) -> None:
    with guarded(tmp_path, secret, sys.executable, "-c", _LATER) as uri:
        examined = case(uri=parse_uri(uri), store=StoreOptions(secret_file=secret))
        verdict, text, fix = only(servers.look_at_servers, examined)
    assert verdict is Verdict.BROKEN
    assert text.startswith("our clock and that of 127.0.0.1")
    assert "timedatectl" in fix


def test_a_server_that_authenticates_nobody(server: Serving, case: CaseMaker, secret: Path) -> None:
    auto = case(uri=parse_uri(server.uri), store=StoreOptions(secret_file=secret))
    (verdict, text, _), _ = seen(servers.look_at_servers, auto)
    assert verdict is Verdict.ADVICE
    assert "authenticates nobody" in text
    required = StoreOptions(secret_file=secret, auth="required")
    verdict, text, _ = only(
        servers.look_at_servers, case(uri=parse_uri(server.uri), store=required)
    )
    assert verdict is Verdict.BROKEN
    assert text == f"{server.address} offers no authentication"


def test_a_secret_that_others_can_read(server: Serving, case: CaseMaker, secret: Path) -> None:
    secret.chmod(0o644)
    examined = case(uri=parse_uri(server.uri), store=StoreOptions(secret_file=secret))
    verdict, text, fix = only(servers.look_at_secret, examined)
    assert verdict is Verdict.BROKEN
    assert "others than its owner have rights" in text
    assert "0123456789abcdef" not in text + fix
    assert seen(servers.look_at_servers, examined) == []
    subprocess.run(fix.partition(": ")[2], shell=True, check=True)
    assert only(servers.look_at_secret, examined)[0] is Verdict.FINE


# --- directories and mirrors


def test_a_root_on_this_machine(case: CaseMaker, tmp_path: Path) -> None:
    examined = case(uri=parse_uri(f"file://{tmp_path}/store/data"))
    verdict, text, fix = only(servers.look_at_directory, examined)
    assert (verdict, text) == (Verdict.BROKEN, f"there is no root `{tmp_path}/store/data`")
    subprocess.run(fix, shell=True, check=True)
    assert only(servers.look_at_directory, examined)[0] is Verdict.FINE


def test_a_mirror(server: Serving, case: CaseMaker, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as web:
        assert web.stdout is not None
        port = web.stdout.readline().split("port ")[1].split()[0]
        store = StoreOptions(
            mirror=(
                MirrorTemplate.parse(f"http://127.0.0.1:{port}/{{hash}}"),
                MirrorTemplate.parse("http://user:pass@127.0.0.1:1/{hash}"),
            )
        )
        found = seen(servers.look_at_servers, case(uri=parse_uri(server.uri), store=store))
        web.terminate()
    assert found[2][0] is Verdict.FINE
    assert f"http://127.0.0.1:{port} answers within" in found[2][1]
    assert found[3][0] is Verdict.BROKEN
    assert "pass" not in "".join(found[3][1:])
