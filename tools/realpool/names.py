"""A name server with a handful of records, for networks that have no other.

    python -m realpool.names ADDRESS RECORD…    # a record as in a zone file: `a.example. 60 IN A 192.0.2.1`

Answers over UDP on port 53 of this address, from what it was told, and knows nothing else. Prints one line
when it listens. Run inside a `Network`; must never be asked by anybody outside.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

PORT = 53
QUESTION_BYTES_MAX = 4096


class Names:
    """Knows some records."""

    def __init__(self, records: Sequence[str]) -> None:
        values: dict[tuple[str, str, str], list[str]] = {}
        for record in records:
            name, ttl, _, kind, value = record.split(maxsplit=4)
            values.setdefault((name, ttl, kind), []).append(value)
        found = [
            dns.rrset.from_text(name, int(ttl), "IN", kind, *texts)
            for (name, ttl, kind), texts in values.items()
        ]
        self._sets = {(each.name, each.rdtype): each for each in found}
        # A name that has others below it is there, too.
        self._names = {
            ancestor
            for name, _ in self._sets
            for ancestor in (name.split(depth)[1] for depth in range(1, len(name) + 1))
        }

    def answer(self, question: dns.message.Message) -> dns.message.Message:
        """What we know; `NXDOMAIN` for names that we have never heard."""
        answer = dns.message.make_response(question, recursion_available=True)
        answer.flags |= dns.flags.AA
        for asked in question.question:
            found = self._sets.get((asked.name, asked.rdtype))
            if found is not None:
                answer.answer.append(found)
            elif asked.name not in self._names:
                answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer


def serve(address: str, names: Names) -> None:
    """Until the process ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((address, PORT))
        print(f"name server on {address}", flush=True)
        while True:
            data, peer = udp.recvfrom(QUESTION_BYTES_MAX)
            try:
                question = dns.message.from_wire(data)
            except dns.exception.DNSException:
                continue  # what cannot be read cannot be answered
            udp.sendto(names.answer(question).to_wire(), peer)


if __name__ == "__main__":
    serve(sys.argv[1], Names(sys.argv[2:]))
