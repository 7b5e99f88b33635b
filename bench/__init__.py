"""How fast the ledger is, side by side with simpler ways to debit, and how fast the ingress, beside a server that only
verifies, on one PostgreSQL in one run.

`make bench` measures everything (about half an hour), `make bench QUICK=1` the same with shorter windows and less
history (below ten minutes), `make bench-long` with 10⁷ transactions of history. Read the table like this:

- a rate is the median of five rounds with the smallest and the largest; rounds are interleaved, so that whatever else
  the machine does meets all competitors alike;
- a ratio divides two medians of the same run. Rates differ between machines, ratios hardly: they are what has goals;
- every debit and every delivery that a rate counts was found in the database afterwards; every balance is what was paid.

`ONLY=ledger` or `ONLY=webhooks` measures one part. Start with `__main__.py`; `load.py`, `posts.py` and `baseline.py` are
processes of their own, as are the servers.
"""
