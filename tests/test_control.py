"""The control socket: who may ask, what is answered, and that nobody waits for the dead."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cafsfs.control import Handler, ask, ask_all, live_sockets, runtime_directory, serve_control
from cafsfs.errors import (
    CafsError,
    ConnectionBroken,
    RemoteProtocolError,
    StoreError,
    TimedOut,
    Unavailable,
)

MIB = 1 << 20
NOBODY = 65534
PATIENCE = 30.0  # seconds for what should take less than one; busy machines are slow at times

# A mount, as far as its socket goes: says where it is when it serves.
SERVER = """
import sys, trio
from cafsfs.control import serve_control

async def where(request):
    return {"pid": __import__("os").getpid()}

async def main():
    async with trio.open_nursery() as nursery:
        print(await nursery.start(serve_control, {"where": where}), flush=True)

trio.run(main)
"""

# As somebody else: says what comes of a request. Without rights only after the imports: the
# interpreter may stand where only its owner may look.
STRANGER = f"""
import os, socket, sys
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(10)
    sock.connect(sys.argv[1])
    try:
        sock.sendall(b'{{"command": "echo"}}\\n')
        print(sock.recv(100))
    except ConnectionError:
        print(b"")
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory, not yet made."""
    monkeypatch.setenv("CAFSFS_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


async def echo(request: dict[str, Any]) -> dict[str, object]:
    return {"said": request.get("say")}


async def refuse(request: dict[str, Any]) -> dict[str, object]:
    raise StoreError("the cache is read-only", hint="mount it again")


async def fall(request: dict[str, Any]) -> dict[str, object]:
    raise KeyError("a bug")


async def tell_a_path(request: dict[str, Any]) -> dict[str, object]:
    return {"path": Path("/")}  # which JSON has no word for


async def be_long(request: dict[str, Any]) -> dict[str, object]:
    return {"much": "x" * request["bytes"]}


HANDLERS: dict[str, Handler] = {
    "echo": echo,
    "refuse": refuse,
    "fall": fall,
    "tell": tell_a_path,
    "long": be_long,
}


@asynccontextmanager
async def serving(handlers: Mapping[str, Handler] = HANDLERS) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve_control, handlers)
        nursery.cancel_scope.cancel()


class NeverBegins:
    """A task_status that fails the test if the service begins."""

    def started(self, value: object = None) -> None:
        pytest.fail(f"it serves at {value}")


async def serve_in_vain() -> None:
    """Without a nursery: raises what serve_control itself raises before it has begun."""
    with trio.fail_after(PATIENCE):
        await serve_control(HANDLERS, task_status=NeverBegins())


async def asked(path: Path, command: str, **more: object) -> dict[str, Any]:
    return await trio.to_thread.run_sync(partial(ask, path, {"command": command, **more}))


async def read_line(stream: trio.SocketStream) -> dict[str, Any]:
    received = b""
    while not received.endswith(b"\n"):
        piece = await stream.receive_some()
        assert piece, received
        received += piece
    answer = json.loads(received)
    assert isinstance(answer, dict)
    return answer


async def is_cut(stream: trio.SocketStream) -> bool:
    """Whether nothing comes any more, not even after a while."""
    with trio.move_on_after(60):
        try:
            return await stream.receive_some() == b""
        except trio.BrokenResourceError:  # closed before all that we sent was read
            return True
    return False


@contextmanager
def server_process() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as it:
        try:
            assert it.stdout is not None
            yield it, Path(it.stdout.readline().rstrip())
        finally:
            it.kill()


def dead_socket(path: Path) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


class TestWhereItIs:
    def test_the_variable_has_the_last_word(self, directory: Path) -> None:
        assert runtime_directory() == directory
        assert not directory.exists()

    def test_a_relative_one_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAFSFS_RUNTIME_DIR", "run")
        with pytest.raises(StoreError, match="is not an absolute path: `run`") as raised:
            runtime_directory()
        assert raised.value.hint

    @pytest.mark.parametrize(
        ("uid", "session", "expected"),
        [
            (0, "{tmp}", "/run/cafsfs"),
            (1000, "{tmp}", "{tmp}/cafsfs"),
            (1000, "{tmp}/missing", "/tmp/cafsfs-1000"),
            (1000, ".", "/tmp/cafsfs-1000"),
            (1000, "", "/tmp/cafsfs-1000"),
            (1000, None, "/tmp/cafsfs-1000"),
        ],
    )
    def test_else_it_depends_on_who_we_are(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        uid: int,
        session: str | None,
        expected: str,
    ) -> None:
        monkeypatch.delenv("CAFSFS_RUNTIME_DIR")
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        monkeypatch.setattr(tempfile, "gettempdir", lambda: "/tmp")
        if session is None:
            monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        else:
            monkeypatch.setenv("XDG_RUNTIME_DIR", session.format(tmp=tmp_path))
        assert runtime_directory() == Path(expected.format(tmp=tmp_path))


class TestWhoMayHaveMadeTheDirectory:
    async def test_it_is_ours_alone(self, directory: Path) -> None:
        async with serving() as path:
            assert path == directory / f"{os.getpid()}.sock"
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_ISSOCK(path.stat().st_mode)

    @pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
    async def test_one_that_others_can_write_to_is_refused(
        self, directory: Path, mode: int
    ) -> None:
        directory.mkdir()
        directory.chmod(mode)
        await self.is_refused("others can write to it")

    async def test_one_that_others_can_read_is_not(self, directory: Path) -> None:
        directory.mkdir()
        directory.chmod(0o755)
        async with serving() as path:
            assert await asked(path, "echo")

    async def test_a_symbolic_link_is_refused(self, directory: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        directory.symlink_to(tmp_path / "elsewhere")
        await self.is_refused("it is a symbolic link")
        assert not list((tmp_path / "elsewhere").iterdir())

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give it away")
    async def test_one_of_somebody_else_is_refused(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory.mkdir(mode=0o700)
        os.chown(directory, NOBODY, NOBODY)
        with pytest.raises(StoreError, match="it belongs to uid 65534"):
            await serve_in_vain()
        assert live_sockets() == []  # root may look into it
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        await self.is_refused("it belongs to uid 65534")

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have one of root's")
    def test_one_of_root_may_be_asked(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory.mkdir(mode=0o700)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert live_sockets() == []

    @pytest.mark.parametrize("kind", ["file", "dangling"])
    async def test_what_is_no_directory_is_refused(self, directory: Path, kind: str) -> None:
        if kind == "file":
            directory.touch()
        else:
            directory.symlink_to("nowhere")
        with pytest.raises(StoreError, match="cannot make the runtime directory") as raised:
            await serve_in_vain()
        assert raised.value.hint
        with pytest.raises(StoreError, match="cannot trust"):
            live_sockets()

    async def is_refused(self, fault: str) -> None:
        message = rf"^cannot trust the runtime directory `.*/run`: {fault}$"
        with pytest.raises(StoreError, match=message) as raised:
            await serve_in_vain()
        assert raised.value.hint
        with pytest.raises(StoreError, match=message):
            live_sockets()
        with pytest.raises(StoreError, match=message):
            ask_all({"command": "echo"})


class TestTheSocketFile:
    async def test_it_goes_with_the_service(
        self, directory: Path, no_descriptor_left: None
    ) -> None:
        async with serving() as path:
            assert live_sockets() == [path]
        assert list(directory.iterdir()) == []

    async def test_a_visitor_does_not_keep_it(
        self, directory: Path, no_descriptor_left: None
    ) -> None:
        async with serving() as path:
            stream = await trio.open_unix_socket(path)
            await stream.send_all(b'{"command": "echo"}\n')
            await read_line(stream)
        assert list(directory.iterdir()) == []
        assert await is_cut(stream)
        await stream.aclose()

    async def test_one_that_is_gone_already_is_no_error(self) -> None:
        async with serving() as path:
            path.unlink()

    @pytest.mark.parametrize("kind", ["socket", "file"])
    async def test_a_dead_one_of_our_name_is_replaced(self, directory: Path, kind: str) -> None:
        directory.mkdir(mode=0o700)
        for suffix in "sock", "new":  # killed before it had a name
            stale = directory / f"{os.getpid()}.{suffix}"
            if kind == "socket":
                dead_socket(stale)
            else:
                stale.touch()
        async with serving() as path:
            assert await asked(path, "echo", say="alive") == {"ok": True, "said": "alive"}
            assert list(directory.iterdir()) == [path]

    async def test_a_live_one_of_our_name_is_not(self) -> None:
        """Two containers may share the directory, and both be process 1."""
        async with serving() as path:
            with pytest.raises(StoreError, match="another process answers at") as raised:
                await serve_in_vain()
            assert raised.value.hint
            assert await asked(path, "echo")

    async def test_a_name_that_is_taken_by_a_directory_is_said(self, directory: Path) -> None:
        (directory / f"{os.getpid()}.sock").mkdir(mode=0o700, parents=True)
        with pytest.raises(StoreError, match="cannot listen at"):
            await serve_in_vain()
        assert [each.suffix for each in directory.iterdir()] == [".sock"]

    async def test_the_longest_path_and_one_byte_more(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = f"/{os.getpid()}.sock"
        with tempfile.TemporaryDirectory(dir="/tmp") as short:
            longest = f"{short}/".ljust(107 - len(name), "x")
            monkeypatch.setenv("CAFSFS_RUNTIME_DIR", longest)
            async with serving() as path:
                assert len(str(path)) == 107
                assert await asked(path, "echo")
            monkeypatch.setenv("CAFSFS_RUNTIME_DIR", longest + "x")
            with pytest.raises(StoreError, match="is too long for a socket: 107 bytes") as raised:
                await serve_in_vain()
            assert raised.value.hint
            with pytest.raises(Unavailable, match="too long"):
                ask(Path(longest + "x" + name), {"command": "echo"})

    @pytest.mark.process
    async def test_systemd_does_not_clean_it_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in /tmp, which it cleans of what is ten days old: here, of all."""
        if shutil.which("systemd-tmpfiles") is None:
            pytest.skip("there is no systemd-tmpfiles here")
        monkeypatch.setenv("CAFSFS_RUNTIME_DIR", str(tmp_path / "tmp" / "run"))
        rules = tmp_path / "rules.conf"
        rules.write_text(f"d {tmp_path}/tmp 0700 - - 0\n")
        clean = ["systemd-tmpfiles", "--clean", str(rules)]
        async with serving() as path:
            await trio.run_process(clean)
            assert await asked(path, "echo")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        dead_socket(path)
        await trio.run_process(clean)
        assert not path.exists()  # so it would have


class TestAnswers:
    async def test_what_the_handler_says(self) -> None:
        async with serving() as path:
            answer = await asked(path, "echo", say={"äöü": [1, None, "\n"]})
        assert answer == {"ok": True, "said": {"äöü": [1, None, "\n"]}}

    async def test_several_requests_on_a_connection(self) -> None:
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            for say in range(3):
                await stream.send_all(json.dumps({"command": "echo", "say": say}).encode() + b"\n")
                assert await read_line(stream) == {"ok": True, "said": say}

    async def test_requests_that_come_together_or_in_pieces(self) -> None:
        requests = b"".join(b'{"command": "echo", "say": %d}\n' % say for say in range(3))
        async with serving() as path:
            for step in 1, 7, len(requests):
                async with await trio.open_unix_socket(path) as stream:
                    for start in range(0, len(requests), step):
                        await stream.send_all(requests[start : start + step])
                        await trio.testing.wait_all_tasks_blocked()
                    await stream.send_eof()
                    received = b""
                    while piece := await stream.receive_some():
                        received += piece
                said = [json.loads(line)["said"] for line in received.splitlines()]
                assert said == [0, 1, 2]

    async def test_an_error_of_ours_comes_back_with_its_hint(self) -> None:
        async with serving() as path:
            with pytest.raises(StoreError, match=r"^the cache is read-only$") as raised:
                await asked(path, "refuse")
        assert raised.value.hint == "mount it again"

    @pytest.mark.parametrize("command", ["fall", "tell"])
    async def test_a_bug_goes_to_the_log(
        self, command: str, expect_log: Callable[[str], None]
    ) -> None:
        expect_log(rf"^ERROR cafsfs\.control: the control command `{command}` failed$")
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            await stream.send_all(json.dumps({"command": command}).encode() + b"\n")
            assert await read_line(stream) == {"ok": False, "error": "internal error"}
            await stream.send_all(b'{"command": "echo"}\n')
            assert await read_line(stream) == {"ok": True, "said": None}

    @pytest.mark.parametrize("command", ["unheard", "", None, 5, ["echo"], {}])
    async def test_an_unknown_command(self, command: object) -> None:
        async with serving() as path:
            with pytest.raises(StoreError, match=r"^unknown command `"):
                await trio.to_thread.run_sync(ask, path, {"command": command})

    async def test_a_handler_may_take_its_time(self, jumping_clock: MockClock) -> None:
        async def sleep(request: dict[str, Any]) -> dict[str, object]:
            await trio.sleep(3600)
            return {}

        async with serving({"sleep": sleep}) as path, await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"command": "sleep"}\n')
            assert await read_line(stream) == {"ok": True}

    async def test_a_long_answer(self) -> None:
        async with serving() as path:
            answer = await asked(path, "long", bytes=5 * MIB)
            assert len(answer["much"]) == 5 * MIB
            with pytest.raises(RemoteProtocolError, match="answered more than 16777216 bytes"):
                await asked(path, "long", bytes=16 * MIB)


class TestBadPeers:
    @pytest.mark.parametrize(
        "garbage",
        [
            b"\n",
            b"\xff\xfe\n",
            b"GET / HTTP/1.1\r\n",
            b"[]\n",
            b'"echo"\n',
            b'{"command": \n',
            b"9" * 5000 + b"\n",
            b"[" * MIB + b"\n",
        ],
        ids=lambda each: repr(each[:12]),
    )
    async def test_garbage_is_refused_and_cut(self, garbage: bytes) -> None:
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            await stream.send_all(garbage + b'{"command": "echo"}\n')
            answer = {"ok": False, "error": "a line is not an object of JSON"}
            assert await read_line(stream) == answer
            assert await is_cut(stream)

    async def test_half_a_request_is_refused(self) -> None:
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"command": "echo"}')
            await stream.send_eof()
            assert await read_line(stream) == {"ok": False, "error": "the request has no end"}
            assert await is_cut(stream)

    async def test_a_request_of_a_mebibyte_and_one_byte_more(self) -> None:
        frame = len(json.dumps({"command": "echo", "say": ""}))
        async with serving() as path:
            answer = await asked(path, "echo", say="x" * (MIB - frame))
            assert len(answer["said"]) == MIB - frame
            for more in 1, 5 * MIB:
                with pytest.raises(StoreError, match="the request is longer than 1048576 bytes"):
                    await asked(path, "echo", say="x" * (MIB - frame + more))

    @pytest.mark.parametrize("sent", [b"", b'{"command": "echo"'])
    async def test_one_that_is_silent_is_cut(self, jumping_clock: MockClock, sent: bytes) -> None:
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            await stream.send_all(sent)
            began = trio.current_time()
            assert await is_cut(stream)
            assert trio.current_time() - began == pytest.approx(10, abs=0.1)

    async def test_one_that_is_silent_after_an_answer_is_cut(
        self, jumping_clock: MockClock
    ) -> None:
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            for _ in range(2):
                await trio.sleep(8)
                await stream.send_all(b'{"command": "echo"}\n')
                await read_line(stream)
            began = trio.current_time()
            assert await is_cut(stream)
            assert trio.current_time() - began == pytest.approx(10, abs=0.1)

    async def test_one_that_trickles_is_cut(self, jumping_clock: MockClock) -> None:
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            began = trio.current_time()
            with suppress(trio.BrokenResourceError):
                while trio.current_time() - began < 60:
                    await stream.send_all(b" ")
                    await trio.sleep(1)
            assert trio.current_time() - began < 12

    async def test_one_that_does_not_take_its_answer_is_cut(self, jumping_clock: MockClock) -> None:
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"command": "long", "bytes": 9000000}\n')
            await trio.sleep(11)
            received = 0
            while piece := await stream.receive_some():
                received += len(piece)
            assert 0 < received < 9_000_000
            assert await asked(path, "echo")

    async def test_one_that_leaves_in_the_middle_is_no_news(self) -> None:
        async with serving() as path:
            for sent in b"", b'{"comm', b'{"command": "long", "bytes": 9000000}\n':
                stream = await trio.open_unix_socket(path)
                await stream.send_all(sent)
                await stream.aclose()
            assert await asked(path, "echo")

    async def test_the_seventeenth_is_refused(self) -> None:
        async with serving() as path:
            crowd = [await trio.open_unix_socket(path) for _ in range(16)]
            for stream in crowd:
                await stream.send_all(b'{"command": "echo"}\n')
                await read_line(stream)
            with pytest.raises(StoreError, match="too many control connections"):
                await asked(path, "echo")
            await crowd[0].aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert await asked(path, "echo")
            for stream in crowd:
                await stream.aclose()

    @pytest.mark.process
    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
    async def test_one_of_another_uid_is_not_answered(
        self, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
    ) -> None:
        expect_log(rf"^WARNING cafsfs\.control: refused a control connection: uid {NOBODY}, pid")
        with tempfile.TemporaryDirectory(dir="/tmp") as reachable:
            os.chmod(reachable, 0o755)
            monkeypatch.setenv("CAFSFS_RUNTIME_DIR", reachable)
            async with serving() as path:
                path.chmod(0o666)
                done = await trio.run_process(
                    [sys.executable, "-c", STRANGER, str(path)], capture_stdout=True
                )
                assert done.stdout == b"b''\n"
                path.chmod(0o600)
                done = await trio.run_process(
                    [sys.executable, "-c", STRANGER, str(path)],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
                assert b"PermissionError" in done.stderr
                assert await asked(path, "echo")

    async def test_a_failing_accept_does_not_end_the_service(
        self,
        jumping_clock: MockClock,
        monkeypatch: pytest.MonkeyPatch,
        expect_log: Callable[[str], None],
    ) -> None:
        expect_log("^WARNING cafsfs.control: cannot accept a control connection: Too many open")
        accept = trio.SocketListener.accept
        failures = [OSError(24, "Too many open files")] * 3

        async def failing(listener: trio.SocketListener) -> trio.SocketStream:
            if failures:
                raise failures.pop()
            return await accept(listener)

        monkeypatch.setattr(trio.SocketListener, "accept", failing)
        async with serving() as path, await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"command": "echo"}\n')
            assert await read_line(stream) == {"ok": True, "said": None}


class TestAsking:
    def test_nobody_there(self, directory: Path) -> None:
        assert live_sockets() == []
        assert ask_all({"command": "where"}) == {}
        with pytest.raises(Unavailable, match=r"nobody answers at `.*`: No such file"):
            ask(directory / "1.sock", {"command": "where"})

    def test_the_sockets_are_sorted_and_nothing_else(self, directory: Path) -> None:
        for name in "3.sock", "1.sock", "2.sock", "4.new":
            dead_socket(directory / name)
        (directory / "5.sock").touch()
        (directory / "6.sock").mkdir()
        (directory / "7.sock").symlink_to("nowhere")
        assert [path.name for path in live_sockets()] == ["1.sock", "2.sock", "3.sock"]
        assert live_sockets(directory / "missing") == []

    def test_one_that_refuses_is_removed(self, directory: Path) -> None:
        path = dead_socket(directory / "1.sock")
        with pytest.raises(Unavailable, match=r"nobody answers at `.*`: Connection refused"):
            ask(path, {"command": "where"})
        assert not path.exists()

    def test_a_file_is_not(self, directory: Path) -> None:
        """connect() says of any file that it refuses."""
        directory.mkdir(mode=0o700)
        path = directory / "1.sock"
        path.touch()
        with pytest.raises(Unavailable):
            ask(path, {"command": "where"})
        assert path.exists()

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (b"", ConnectionBroken, "closed the connection without an answer"),
            (b'{"ok": true}', ConnectionBroken, "closed the connection without an answer"),
            (b"yes\n", RemoteProtocolError, "a line is not an object of JSON"),
            (b"{}\n", RemoteProtocolError, "answered neither yes nor no"),
            (b'{"ok": 1}\n', RemoteProtocolError, "answered neither yes nor no"),
            (b'{"ok": false}\n', RemoteProtocolError, "answered neither yes nor no"),
            (b'{"ok": true}\n{"ok": true}\n', RemoteProtocolError, "not an object of JSON"),
        ],
    )
    async def test_an_answer_that_is_none(
        self, directory: Path, answer: bytes, error: type[CafsError], message: str
    ) -> None:
        async def misbehave(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.receive_some()
                await stream.send_all(answer)

        directory.mkdir(mode=0o700)
        with trio.socket.socket(socket.AF_UNIX) as sock:
            path = directory / "1.sock"
            await sock.bind(str(path))
            sock.listen()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, misbehave, [trio.SocketListener(sock)])
                with pytest.raises(error, match=message):
                    await asked(path, "where")
                nursery.cancel_scope.cancel()

    def test_the_deadline_is_for_all(self, directory: Path) -> None:
        """One that takes visitors, and one that has as many as it can take."""
        with ExitStack() as stack:
            path = dead_socket(directory / "1.sock")
            path.unlink()
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
            listening.listen(0)
            for request in {"command": "where"}, {"command": "where", "much": "x" * MIB}:
                began = time.monotonic()
                with pytest.raises(TimedOut, match=r"did not answer within 0\.3 s"):
                    ask(path, request, deadline=0.3)
                assert 0.3 <= time.monotonic() - began < 10  # else it hangs
            assert path.exists()

    def test_one_that_trickles_does_not_stretch_it(self, directory: Path) -> None:
        path = dead_socket(directory / "1.sock")
        path.unlink()
        trickle = f"""
import socket, time
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind({str(path)!r})
    sock.listen()
    print(flush=True)
    peer, _ = sock.accept()
    while True:
        peer.send(b" ")
        time.sleep(0.05)
"""
        with subprocess.Popen(
            [sys.executable, "-c", trickle], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            began = time.monotonic()
            with pytest.raises(TimedOut):
                ask(path, {"command": "where"}, deadline=0.5)
            assert time.monotonic() - began < 10  # else it hangs
            process.kill()

    async def test_all_that_answer(
        self, directory: Path, expect_log: Callable[[str], None]
    ) -> None:
        async with serving() as path:
            dead = dead_socket(directory / "1.sock")
            answers = await trio.to_thread.run_sync(ask_all, {"command": "echo", "say": "hi"})
            assert answers == {path: {"ok": True, "said": "hi"}}
            assert not dead.exists()
            expect_log(rf"^WARNING cafsfs\.control: the mount at `{path}` refused: the cache is")
            assert await trio.to_thread.run_sync(ask_all, {"command": "refuse"}) == {}


@pytest.mark.process
class TestProcesses:
    def test_those_that_live_answer_and_a_killed_one_is_cleared_away(self) -> None:
        with server_process() as (one, path), server_process() as (other, left):
            assert live_sockets() == sorted([path, left])
            assert {answer["pid"] for answer in ask_all({"command": "where"}).values()} == {
                one.pid,
                other.pid,
            }
            other.kill()
            other.wait(PATIENCE)
            assert left.exists()
            assert ask_all({"command": "where"}) == {path: {"ok": True, "pid": one.pid}}
            assert live_sockets() == [path]

    def test_those_that_hang_cost_one_deadline_in_all(
        self, expect_log: Callable[[str], None]
    ) -> None:
        with ExitStack() as stack:
            processes = [stack.enter_context(server_process()) for _ in range(4)]
            for process, path in processes[:3]:
                os.kill(process.pid, signal.SIGSTOP)
                expect_log(rf"^WARNING cafsfs\.control: passed over a mount: `{path}` did not ans")
            alive, at = processes[3]
            began = time.monotonic()
            answers = ask_all({"command": "where"}, deadline=1.5)
            assert answers == {at: {"ok": True, "pid": alive.pid}}
            assert 1.5 <= time.monotonic() - began < 4  # one after the other they cost 4.5
            assert len(live_sockets()) == 4  # it will go on, perhaps
            os.kill(processes[0][0].pid, signal.SIGCONT)
            assert ask(processes[0][1], {"command": "where"}, deadline=PATIENCE)

    def test_an_interrupted_one_leaves_nothing(self, directory: Path) -> None:
        with server_process() as (process, path):
            assert path.exists()
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
        assert list(directory.iterdir()) == []
