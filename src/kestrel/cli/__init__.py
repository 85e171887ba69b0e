"""The `kestrel` command: thin. Reads options, calls the rooms below, prints through `output`."""
