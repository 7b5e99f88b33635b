"""The Alembic environment of every schema; `runner` hands it an open connection, so no URL passes through."""

from alembic import context

from shared.migrations.roles import VERSION_TABLE

attributes = context.config.attributes

context.configure(
    connection=attributes["connection"],
    target_metadata=attributes.get("metadata"),
    version_table=VERSION_TABLE,
    version_table_schema=attributes["schema"],
    # The session's search_path is this schema alone: it is the default schema, autogenerate sees no other.
    include_schemas=False,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
