"""The release before this one, on the schema of this one."""
