"""The operators' command: looks into a running suite, and mends what a runbook mends.

It reads with the SQL of the runbooks, as `billing_readonly`, and changes by the operators' RPCs, which are audited.
Add a mending command as a module of `fixes/`: a function that answers a `Diagnosis`, and a line in `app.py`.
"""
