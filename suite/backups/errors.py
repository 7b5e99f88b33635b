"""Why a backup was not taken, or not given back."""


class BackupFailed(Exception):
    """Nothing was kept that looks like a backup; the message says why and what to do."""


class RestoreFailed(Exception):
    """The message says why, and what became of the target."""
