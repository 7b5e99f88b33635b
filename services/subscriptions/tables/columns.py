"""What the tables share."""

from sqlalchemy import Column, DateTime, MetaData, func

metadata = MetaData()
MOMENT = DateTime(timezone=True)


def created_at() -> Column[object]:
    """When the row was written."""
    return Column("created_at", MOMENT, nullable=False, server_default=func.now())


def updated_at() -> Column[object]:
    """When the row last changed."""
    return Column("updated_at", MOMENT, nullable=False, server_default=func.now())
