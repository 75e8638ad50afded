"""Alembic migrations of the archive; run when it is opened."""
