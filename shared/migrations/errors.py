"""Why a schema cannot be used or changed."""


class MigrationFailed(Exception):
    """The schemas could not be brought up to date; nothing of the failing migration was kept."""


class SchemaBehind(Exception):
    """A schema lacks migrations that this code needs."""
