"""The ledger owns every credit, and what a tenant may use. Read rpc.py, actions.py, rules/ and store.py, in that order."""
