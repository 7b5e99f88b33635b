"""The doors out: the ledger and the payment provider. Plain values in, plain values out."""
