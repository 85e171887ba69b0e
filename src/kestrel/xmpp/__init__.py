"""XMPP for both ends: a pure stream core (`stream`, `stanza`, `jid`, `sasl`, `acks`) and thin asyncio
shells over it (`client`, `component`, `link`, `register`). The embedded server uses the same core."""
