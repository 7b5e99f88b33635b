"""The command line: names, options and help. What a command does lies in `looks/` and `fixes/`."""
