"""10,000 damaged streams: none crashes or wedges the server, and two healthy clients still talk."""

import asyncio
import random

from parts.server import DOMAIN, MANAGER, PATIENCE_S, Raw, header, serving

SEED = 20_261_122
STREAMS = 10_000
AT_ONCE = 20
PAYLOADS = [
    f"<message to='mallory@{DOMAIN}/r' type='chat' id='1'><body>h\u00e9llo &amp; &#65;</body></message>",
    f"<message to='{MANAGER}'><json xmlns='urn:xmpp:json:0'>{{\"type\": \"profile\"}}</json></message>",
    "<presence><show>chat</show><priority>5</priority></presence>",
    f"<presence to='job-1@{MANAGER}'/>",
    f"<presence to='bob@{DOMAIN}' type='subscribe'/>",
    f"<presence to='bob@{DOMAIN}' type='unsubscribed'/>",
    "<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>",
    "<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='a@b' name='n'><group>g</group></item>"
    "</query></iq>",
    f"<iq type='get' id='d' to='{DOMAIN}'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>",
    "<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>",
    "<enable xmlns='urn:xmpp:sm:3'/><r xmlns='urn:xmpp:sm:3'/><a xmlns='urn:xmpp:sm:3' h='0'/>",
    "</stream:stream>",
]
LOGINS = [
    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'>bixhPWI=</auth>",
    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>biwsbj1hbGljZSxyPWFiYw==</auth>"
    "<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>Yz1iaXdzLHI9YSxwPWI=</response>",
    "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
    "<iq type='set' id='1'><query xmlns='jabber:iq:register'><username>u</username><password>p</password>"
    "<token xmlns='urn:kestrel:invitation:0'>t</token></query></iq>",
    "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
]
FRAGMENTS = [
    *(b"< > /> ' \" & &#0; ]]> <!-- <?x?> \x00 \xff \xc3 from='x' </stream:stream> <a:b/> = @ /").split(),
    *(b"type='error' \xed\xa0\x80 \xef\xbf\xbf <!DOCTYPE").split(),
    b" xmlns='urn:x'",
    b" xmlns:stream='y'",
    b"<!DOCTYPE a>",
]


def mutated(draw, parts):
    """Some valid stanzas in any order, damaged in one to four places."""
    data = bytearray("".join(draw.choices(parts, k=draw.randint(1, 5))).encode())
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0:
                del data[at : at + draw.randint(1, 20)]
            case 1:
                data[at:at] = draw.choice(FRAGMENTS)
            case 2:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 3:
                end = draw.randrange(len(data) + 1)
                data[at:at] = data[min(at, end) : max(at, end)][:300]
            case 4:
                data[at : at + 4] = draw.choice(FRAGMENTS)
            case 5:
                del data[at:]
        if not data:
            data += b"<"
    return bytes(data)


def test_damaged_streams_harm_nobody_else():
    draw = random.Random(SEED)
    bound = [mutated(draw, PAYLOADS) for _ in range(STREAMS // 2)]
    unbound = [header().encode() + mutated(draw, LOGINS) for _ in range(STREAMS // 4)]
    early = [mutated(draw, [header(), header(ns="jabber:component:accept")]) for _ in range(STREAMS // 4)]

    async def scene():
        async with serving(limits={"connections_max": 1000, "roster_items_max": 50}) as server:
            manager = await Raw.component(server.component_port)
            alice = await Raw.login(server.c2s_port, "alice")
            reading = asyncio.create_task(drained(manager))
            await swarm(lambda data, n: as_bound(server, data, n), bound)
            await swarm(lambda data, n: as_stranger(server.c2s_port, data), unbound + early)
            await swarm(lambda data, n: as_stranger(server.component_port, data), early[:200])
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            bob = await Raw.login(server.c2s_port, "bob", "healthy")
            alice.send(f"<message to='{bob.address}'><body>still here</body></message>")
            await bob.until("<body>still here</body>")
            manager.send(f"<message from='{MANAGER}' to='{bob.address}'><body>me too</body></message>")
            await bob.until("<body>me too</body>")
            for raw in (alice, bob, manager):
                await raw.close()

    asyncio.run(scene())


async def swarm(attack, streams):
    waiting = iter(enumerate(streams))

    async def one():
        for number, data in waiting:
            await attack(data, number)

    async with asyncio.timeout(PATIENCE_S * 3):
        await asyncio.gather(*(one() for _ in range(AT_ONCE)))


async def as_bound(server, data, number):
    """The damaged stanzas of somebody who is logged in. Binding is done by hand: a thousand logins by
    SCRAM would test nothing that the logins below do not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.c2s_port)
    here = writer.get_extra_info("sockname")[1]
    writer.write(header().encode())
    await reader.readuntil(b"</stream:features>")
    link = next(
        each
        for each in server.hub.connections
        if each.kind == "client"
        and each.transport is not None
        and each.transport.get_extra_info("peername")[1] == here
    )
    link._accept("mallory", "")
    bind = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>"
    writer.write(header().encode() + bind.encode())
    await reader.readuntil(b"</iq>")
    writer.write(data)
    await the_end(reader, writer)


async def as_stranger(port, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await the_end(reader, writer)


async def the_end(reader, writer):
    """Half close, and wait until the server has closed its half: it has dealt with everything."""
    try:
        writer.write_eof()
        while await reader.read(65536):
            pass
    except ConnectionError:
        pass
    writer.close()


async def drained(raw):
    while await raw.reader.read(65536):
        pass
