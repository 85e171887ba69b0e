"""The wire vocabulary: typed JSON messages, their codec, and the documents made from them.

Pure: no clock, no chance, no I/O. Every other room may import it.
"""
