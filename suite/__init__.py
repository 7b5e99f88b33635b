"""One command that runs the whole house on one machine, and the tools around it."""
