"""Named endpoints as data: read from files and the environment, and edited."""
