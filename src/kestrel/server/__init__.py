"""The embedded XMPP server: a small, bounded server over the stream core of `kestrel.xmpp`.

`service.EmbeddedServer` is what others start; `accounts.Accounts` says who may log in.
"""
