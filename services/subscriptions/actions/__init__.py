"""What the room can do: read and lock, decide, write, in one transaction each.

A function that takes `engine` is an action; one that takes `db` is a step of any action's transaction.
"""
