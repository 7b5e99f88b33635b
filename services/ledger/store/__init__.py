"""Every SQL statement of the ledger: `load` and `write` are a lane's two round trips, `reads` answers, `audit` looks."""
