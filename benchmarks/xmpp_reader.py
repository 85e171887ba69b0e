"""How fast the stream reader reads, readdresses and opens stanzas, and what an idle reader weighs.

    python benchmarks/xmpp_reader.py

The ratio at the end compares with expat alone on the same bytes, in the same run.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from xml.parsers import expat

from kestrel.xmpp import stanza as x
from kestrel.xmpp.stream import Stanza, StreamReader

STANZAS = 100_000
PER_READ = 160
READERS = 5000
HEADER = x.stream_header(to="kestrel.localhost")
BODY = "a" * 300


def expat_alone(raw: bytes) -> float:
    """Stanzas per second of a parser with two handlers that do nothing."""
    parser = expat.ParserCreate("utf-8", " ")
    parser.StartElementHandler = lambda tag, attrs: None
    parser.EndElementHandler = lambda tag: None
    parser.Parse(HEADER, False)
    block = raw * PER_READ
    start = time.perf_counter()
    for _ in range(STANZAS // PER_READ):
        parser.Parse(block, False)
    return STANZAS // PER_READ * PER_READ / (time.perf_counter() - start)


def reader(raw: bytes) -> tuple[float, Stanza]:
    """Stanzas per second of our reader, and the last stanza."""
    stream = StreamReader()
    stream.feed(HEADER)
    block, count, last = raw * PER_READ, 0, None
    start = time.perf_counter()
    for _ in range(STANZAS // PER_READ):
        events = stream.feed(block)
        count += len(events)
        last = events[-1]
    rate = count / (time.perf_counter() - start)
    assert isinstance(last, Stanza)
    return rate, last


def microseconds(call: object, stanza: Stanza) -> float:
    assert callable(call)
    start = time.perf_counter()
    for _ in range(STANZAS):
        call(stanza)
    return (time.perf_counter() - start) / STANZAS * 1e6


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def weight(rest: bool) -> float:
    """Bytes per reader that has seen a header and one presence."""
    gc.collect()
    before = resident_bytes()
    readers = []
    for number in range(READERS):
        stream = StreamReader()
        stream.feed(HEADER)
        stream.feed(b"<presence to='manager%d'/>" % number)
        if rest:
            stream.rest()
        readers.append(stream)
    return (resident_bytes() - before) / len(readers)


def main() -> None:
    resting = weight(rest=True)
    awake = weight(rest=False)
    print(f"idle reader: {resting:,.0f} bytes at rest, {awake:,.0f} bytes with its parser")
    messages = {
        "body": x.message_body("manager.localhost", BODY, id="abc12"),
        "container": x.message_json("manager.localhost", f'"{BODY}"'.encode(), id="abc12"),
    }
    for name, raw in messages.items():
        alone = expat_alone(raw)
        rate, stanza = reader(raw)
        routed = microseconds(lambda s: s.with_addresses("w@x/1", ns=x.NS_COMPONENT), stanza)
        opened = microseconds(lambda s: s.json() or s.body(), stanza)
        print(
            f"{name}: {rate:,.0f} stanzas/s ({rate / alone:.2f} x expat alone), "
            f"readdressed in {routed:.1f} us, opened in {opened:.1f} us"
        )


if __name__ == "__main__":
    main()
