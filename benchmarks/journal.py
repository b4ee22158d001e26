"""Pairs of STARTED and SUCCEEDED a second: the journal against SQLModel's async session, in one run.

    python benchmarks/journal.py [--seconds 3]

Both write the same rows (one attempt each) to an SQLite file with `synchronous=FULL`, every operation durable before
its caller goes on. Ratios count; seconds differ between machines.
"""
