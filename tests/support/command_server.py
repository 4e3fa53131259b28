"""Runs `overnight` commands as processes that are forked from one which has imported the program already.

Each command has its own process, arguments, folder, environment and standard streams; only the start of the interpreter and the
imports are saved. A test of these, of signals and of variables that the interpreter itself reads starts `python -m overnight`.

    python command_server.py SOCKET     serves until its standard input closes
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading

STREAMS = (0, 1, 2)
NUMBER = 12
"""Bytes of a process number or an exit code in an answer."""


class Command:
    """A running command. It is killed when the connection closes, as it does when this process ends."""

    def __init__(
        self,
        path: str,
        words: list[str],
        folder: str,
        environment: dict[str, str],
        streams: tuple[int, ...],
        script_folder: str = "",
    ) -> None:
        """`script_folder` comes first on its module path."""
        asked = {"words": words, "folder": folder, "environment": environment, "script_folder": script_folder}
        body = json.dumps(asked).encode("utf-8", "surrogateescape")
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(path)
        socket.send_fds(self._connection, [len(body).to_bytes(4, "big")], streams)
        self._connection.sendall(body)
        self.pid = self._number()
        self._code: int | None = None

    def wait(self) -> int:
        """Its exit code: negative for a signal."""
        if self._code is None:
            self._code = self._number()
            self._connection.close()
        return self._code

    def kill(self) -> None:
        """End it at once, unless it has ended."""
        if self._code is None:
            self._connection.shutdown(socket.SHUT_WR)
            self.wait()

    def _number(self) -> int:
        answer = b""
        while len(answer) < NUMBER:
            piece = self._connection.recv(NUMBER - len(answer))
            if not piece:
                raise RuntimeError("the command server ended")
            answer += piece
        return int(answer)


def _serve(path: str) -> None:
    import gc
    import select

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        _preload()
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        while True:
            _reap()
            ready, _, _ = select.select([listener, 0], [], [], 1.0)
            if 0 in ready and not os.read(0, 1):
                return
            if listener in ready:
                connection, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _attend(connection)
                connection.close()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def _attend(connection: socket.socket) -> None:
    """In a process of its own: run the command in another one, and send its exit code."""
    head, streams, _, _ = socket.recv_fds(connection, 4, len(STREAMS))
    rest = int.from_bytes(head, "big")
    pieces: list[bytes] = []
    while rest:
        pieces.append(connection.recv(min(rest, 1 << 20)))
        rest -= len(pieces[-1])
    command = os.fork()
    if command == 0:
        connection.close()
        for stream, given in zip(STREAMS, streams, strict=True):
            os.dup2(given, stream)
            os.close(given)
        _run(**json.loads(b"".join(pieces).decode("utf-8", "surrogateescape")))
    for stream in streams:
        os.close(stream)
    connection.sendall(b"%*d" % (NUMBER, command))
    threading.Thread(target=_kill_when_closed, args=(connection, command), daemon=True).start()
    os.waitid(os.P_PID, command, os.WEXITED | os.WNOWAIT)
    with _ENDS:
        _, status = os.waitpid(command, 0)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it
            connection.sendall(b"%*d" % (NUMBER, os.waitstatus_to_exitcode(status)))
        os._exit(0)


_ENDS = threading.Lock()


def _kill_when_closed(connection: socket.socket, command: int) -> None:
    connection.recv(1)
    with _ENDS, contextlib.suppress(ProcessLookupError):
        os.kill(command, signal.SIGKILL)


def _run(words: list[str], folder: str, environment: dict[str, str], script_folder: str) -> None:
    import atexit
    import io
    import time
    import traceback

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    out = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(out, "utf-8", line_buffering=os.isatty(1))
    err = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["overnight", *words]
    sys.path[0] = script_folder
    code = 0
    try:
        from overnight.cli import main

        main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1 if left.code else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        code = 120
    sys.stderr.flush()
    os._exit(code)


def _preload() -> None:
    """Import what commands import, and build their parsers."""
    import importlib
    import pkgutil

    import typer

    import overnight
    from overnight.cli.program import program

    for name in (
        "cli",
        "app",
        "api",
        "brain",
        "budgets",
        "gateway",
        "jobs",
        "keys",
        "reviews",
        "roles",
        "story",
        "store",
    ):
        package = importlib.import_module(f"overnight.{name}")
        for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in ("genai_prices.data", "rich.console", "rich.table", "rich.text", "ruamel.yaml", "uvloop", "zoneinfo"):
        importlib.import_module(name)
    group = typer.main.get_command(program)
    for name in list(group.commands):  # each is loaded when it is looked up
        assert group.commands[name].name == name, overnight.__version__


if __name__ == "__main__":
    _serve(sys.argv[1])
