"""What is received, every job and every delivery: one database (SQLAlchemy) and one object store (fsspec).

See docs/decisions/0011-ledger.md. Everything here blocks; callers on the event loop go through a thread.
"""
