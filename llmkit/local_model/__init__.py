"""A small language model in a child process: real answers without a server, a key or a network."""
