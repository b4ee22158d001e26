"""A small language model in a child process of our own: real answers without a server, a key or a network."""
