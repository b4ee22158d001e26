"""The parts that a session is made of, one for each thing that people do with it."""
