"""Every SQL statement of the ledger: `lane` writes credits in batches, `reads` answers, `entitlements` keeps limits."""
