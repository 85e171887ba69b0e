"""Collects the evidence: proofs from their files, results from the store itself.

Called by `chaos.run` when nobody writes any more.
"""

from __future__ import annotations

from pathlib import Path

from chaos.checker import Proof, Row
from kestrel.store.places import open_archive

_WORDS = 6


def proof_of(line: str) -> Proof | None:
    """The proof in a line that a task wrote (proof.sh); None if it is none."""
    words = line.split(" ")
    if len(words) != _WORDS or words[0] not in ("S", "E"):
        return None
    try:
        return Proof(words[0] == "E", int(words[1]), int(words[2]), int(words[3]), words[4], float(words[5]))
    except ValueError:
        return None


def read_proofs(directory: Path) -> tuple[list[Proof], list[str]]:
    """All proofs, and all lines that are none."""
    proofs, torn = [], []
    for path in sorted(directory.iterdir()):
        for line in path.read_text(errors="replace").splitlines():
            proof = proof_of(line)
            if proof is None:
                torn.append(line)
            else:
                proofs.append(proof)
    return proofs, torn


def read_store(place: str) -> tuple[list[Row], dict[int, str]]:
    """All results in the store, and the submission id of each job in it."""
    archive = open_archive(place)
    try:
        ids = {record.job: record.submission for record in archive.jobs()}
        rows = [
            Row(job, each.task, seq, each.state, each.attempt, each.worker)
            for job in ids
            for seq, each in archive.results(job)
        ]
    finally:
        archive.close()
    return rows, ids


class ProofsSoFar:
    """What tasks have written into the directory, read on while they write."""

    def __init__(self, directory: Path) -> None:
        self.proofs: list[Proof] = []
        self._directory = directory
        self._read: dict[Path, int] = {}

    def look(self) -> list[Proof]:
        """The lines that are new, without one that is being written."""
        found: list[Proof] = []
        for path in sorted(self._directory.iterdir()):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            found += [p for p in map(proof_of, whole.decode(errors="replace").splitlines()) if p is not None]
        self.proofs += found
        return found
