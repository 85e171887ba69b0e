"""A real ejabberd with the configuration that `kestrel server config ejabberd` prints, stopped by pid.

It is started without `ejabberdctl`, without a node name and so without epmd and without a port for Erlang:
what is to be told to it goes through a pipe, whose end ends it, too. It runs as `ejabberd` when we are
root. Called by benchmarks, and by tests through `parts.ejabberd`.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kestrel.local.foreign import ejabberd_yml
from realpool.live import OUTPUT, ForeignServer
from realpool.processes import Hung

TOLD_S_MAX = 30.0
MARK = "told: "
# Reads `NAME PASSWORD` lines, and makes an account of each. Waits first until ejabberd is up.
LISTENER = """
spawn(fun() ->
  Up = fun(F) -> case ejabberd_cluster:get_nodes() of _ ->
    case lists:keymember(ejabberd, 1, application:which_applications()) of
      true -> ok; false -> timer:sleep(20), F(F) end end end,
  Up(Up),
  Read = fun(F) -> case io:get_line("") of
    Line when is_list(Line) ->
      [Name, Password] = string:lexemes(Line, " \\n"),
      Done = ejabberd_auth:try_register(list_to_binary(Name), <<"@DOMAIN@">>, list_to_binary(Password)),
      io:format("told: ~s ~p~n", [Name, Done]), F(F);
    _ -> halt(0) end end,
  Read(Read) end).
"""


class Ejabberd(ForeignServer):
    """`with Ejabberd(accounts={"alice": "secret"}) as server: server.port …`"""

    kind = "ejabberd"
    user = group = "ejabberd"

    def __init__(self, **wanted: Any) -> None:
        """`wanted`: see `ForeignServer`."""
        self._told: queue.Queue[str] = queue.Queue()
        self._made: set[str] = set()
        super().__init__(**wanted)

    @property
    def config(self) -> Path:
        return self.directory / "ejabberd.yml"

    def _write(self) -> None:
        text = ejabberd_yml(self.plan)
        self.config.write_text(text if self.tls else text.replace("    starttls: true\n", ""))
        # As Debian has it: hosts, and the name servers of /etc/resolv.conf.
        (self.directory / "inetrc").write_text('{lookup,["file","native"]}.\n')

    def command(self) -> list[str]:
        words = ["erl", "-noshell", "+K", "true", "+P", "250000", "-boot", "start_sasl", "-sasl"]
        words += ["sasl_error_logger", "false", "-mnesia", "dir", f'"{self.plan.data}"', "-ejabberd", "quiet"]
        words += ["true", "-s", "ejabberd", "-eval", LISTENER.replace("@DOMAIN@", self.domain)]
        return words

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": self.plan.data,
            "ERL_LIBS": str(next(iter(_libraries()), "")),
            "EJABBERD_CONFIG_PATH": str(self.config),
            "EJABBERD_LOG_PATH": str(self.directory / "ejabberd.log"),
            "ERL_INETRC": str(self.directory / "inetrc"),
            "ERL_CRASH_DUMP_BYTES": "0",
            "ERL_MAX_PORTS": "32000",
        }

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.directory / OUTPUT).open("ab") as output:
            process = subprocess.Popen(
                self._words(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=self.directory,
                env=self.environment(),
                start_new_session=True,
            )
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        return process

    def _read(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            text = line.decode(errors="replace").strip()
            if text.startswith(MARK):
                self._told.put(text.removeprefix(MARK))

    def start(self) -> None:
        super().start()
        self._tell([name for name in self.passwords if name not in self._made])

    def _put_account(self, name: str, role: str) -> None:
        """Now, or with all others at the first start."""
        if self.running:
            self._tell([name])

    def _tell(self, names: list[str]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        lines = "".join(f"{name} {self.passwords[name]}\n" for name in names)
        self._process.stdin.write(lines.encode())
        self._process.stdin.flush()
        for name in names:
            try:
                done = self._told.get(timeout=TOLD_S_MAX)
            except queue.Empty:
                raise Hung(f"ejabberd did not make the account {name}\n{self.log[-3000:]}") from None
            assert done == f"{name} ok", f"ejabberd said {done!r} of the account {name}"
            self._made.add(name)

    @property
    def log(self) -> str:
        return self.said("ejabberd.log")


def ejabberd_program() -> str:
    """Path of Erlang's program, if ejabberd is installed; empty: it is not."""
    return (shutil.which("erl") or "") if _libraries() else ""


def _libraries() -> list[Path]:
    """Where Debian keeps the compiled modules."""
    return sorted({path.parents[2] for path in Path("/usr/lib").glob("*/ejabberd-*/ebin/ejabberd.beam")})
