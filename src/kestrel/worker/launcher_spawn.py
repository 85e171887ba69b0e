"""Starting one process as a shell would have it, its output files. Part of the launcher process.

Imports only a little of the standard library. Never waits for a process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat

_SHELL = "/bin/sh"
_PATHS_MAX = 10_000
_OUTPUT_FLAGS = os.O_RDWR | os.O_CREAT | os.O_TRUNC


class CannotStartError(Exception):
    """A command that cannot be started: the exit code that a shell would give, and why."""

    def __init__(self, exit_code: int | None, reason: str) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.reason = reason


class Programs:
    """Finds programs (and remembers where they are) and starts them."""

    def __init__(self) -> None:
        self._paths: dict[tuple[str, str], str] = {}

    def spawn(self, argv: list[str], env: dict[str, str], null: int, out: int, err: int) -> int:
        """Start a process with these standard streams; its pid, which is its group and session too.

        Raises `CannotStartError`.
        """
        try:
            path = self._find(argv[0], env)
            try:
                return _posix_spawn(path, argv, env, null, out, err)
            except OSError as problem:
                if problem.errno == errno.ENOEXEC:  # no #! line: a script for the shell, as execvp does
                    return _posix_spawn(_SHELL, [_SHELL, path, *argv[1:]], env, null, out, err)
                self._paths.clear()
                raise
        except OSError as problem:
            raise _cannot_start(argv[0], problem) from None
        except ValueError as problem:
            raise CannotStartError(None, f"cannot start {argv[0]!r}: {problem}") from None

    def _find(self, word: str, env: dict[str, str]) -> str:
        """The program's path, as execvp finds it. Raises FileNotFoundError or PermissionError."""
        if "/" in word:
            return word
        search = env.get("PATH", os.defpath)
        found = self._paths.get((word, search))
        if found is not None:
            return found
        refused = False
        for directory in search.split(os.pathsep):
            path = os.path.join(directory or ".", word)
            try:
                regular = stat.S_ISREG(os.stat(path).st_mode)
            except OSError:
                continue
            if regular and os.access(path, os.X_OK):
                if os.path.isabs(path):
                    if len(self._paths) >= _PATHS_MAX:
                        self._paths.clear()
                    self._paths[word, search] = path
                return path
            refused = True
        if refused:
            raise PermissionError(errno.EACCES, "not executable")
        raise FileNotFoundError(errno.ENOENT, "not found")


def _posix_spawn(path: str, argv: list[str], env: dict[str, str], null: int, out: int, err: int) -> int:
    """Start a process in a session of its own; its pid. Raises OSError, as exec would."""
    try:
        return os.posix_spawn(
            path,
            argv,
            env,
            file_actions=(
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, out, 1),
                (os.POSIX_SPAWN_DUP2, err, 2),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    except (NotImplementedError, AttributeError):  # an old libc: no sessions, or no posix_spawn
        import subprocess

        process = subprocess.Popen(
            argv, executable=path, env=env, stdin=null, stdout=out, stderr=err, start_new_session=True
        )
        process.returncode = 0  # we wait for it ourselves
        return process.pid


def _cannot_start(word: str, problem: OSError) -> CannotStartError:
    """Exit code and words as a shell has them."""
    match problem.errno:
        case errno.ENOENT | errno.ENOTDIR:
            if os.path.exists(word):
                return CannotStartError(127, f"the interpreter of {word} does not exist (see its first line)")
            return CannotStartError(127, f"command not found: {word}")
        case errno.EACCES | errno.EPERM:
            return CannotStartError(126, f"not executable: {word}")
        case errno.E2BIG:
            return CannotStartError(126, f"the arguments of {word} are too long for this system")
        case errno.EAGAIN | errno.ENOMEM | errno.EMFILE | errno.ENFILE:
            return CannotStartError(None, f"this machine can start no more processes: {problem.strerror}")
        case _:
            return CannotStartError(126, f"cannot start {word}: {problem.strerror}")


class Outputs:
    """The output files of attempts."""

    def __init__(self, directory: str = "") -> None:
        """`directory`: one that all files are below, opened now; later we may have no path to it any more."""
        self._prefix = f"{directory}/" if directory else ""
        self._within = os.open(directory, os.O_RDONLY | os.O_DIRECTORY) if directory else None

    def create(self, path: str) -> int:
        """Open an output file; its directory is made when it is missing. Raises `CannotStartError`."""
        name = path.removeprefix(self._prefix)
        try:
            return os.open(name, _OUTPUT_FLAGS, 0o600, dir_fd=self._within)
        except FileNotFoundError:
            pass
        except OSError as problem:
            raise CannotStartError(None, f"cannot write {path}: {problem.strerror}") from None
        try:
            self._make_directory(os.path.dirname(name))
            return os.open(name, _OUTPUT_FLAGS, 0o600, dir_fd=self._within)
        except OSError as problem:
            raise CannotStartError(None, f"cannot write {path}: {problem.strerror}") from None

    def _make_directory(self, name: str) -> None:
        if self._within is None:
            os.makedirs(name, mode=0o700, exist_ok=True)
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode=0o700, dir_fd=self._within)

    def collect(self, fd: int, path: str, tail_bytes: int) -> tuple[str, int]:
        """The end of an output and its whole length; closes it, removes a file that the end holds completely.

        Text that is not UTF-8 is replaced in the end, so such a file stays.
        """
        size = os.fstat(fd).st_size
        tail = os.pread(fd, tail_bytes, max(0, size - tail_bytes)) if size and tail_bytes else b""
        os.close(fd)
        if size > tail_bytes:  # do not begin in the middle of a character
            skip = 0
            while skip < min(3, len(tail)) and tail[skip] & 0xC0 == 0x80:
                skip += 1
            tail = tail[skip:]
        text = tail.decode("utf-8", "replace")
        if not text.isascii():  # two characters that XML cannot carry (XML 1.0 section 2.2)
            text = text.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
        if size <= tail_bytes and "\ufffd" not in text:
            with contextlib.suppress(OSError):  # the task removed it, or it stays: no harm
                os.unlink(path.removeprefix(self._prefix), dir_fd=self._within)
        return text, size
