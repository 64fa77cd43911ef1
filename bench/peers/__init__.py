"""The adapters: one file per peer, run as a program in an environment of its own."""
