"""How fast the ledger is, side by side with simpler ways to debit, on one PostgreSQL in one run.

`make bench` measures everything (about a quarter of an hour), `make bench QUICK=1` the same with shorter windows and less
history (below ten minutes), `make bench-long` with 10⁷ transactions of history. Read the table like this:

- a rate is the median of five rounds with the smallest and the largest; rounds are interleaved, so that whatever else
  the machine does meets all competitors alike;
- a ratio divides two medians of the same run. Rates differ between machines, ratios hardly: they are what has goals;
- every debit that a rate counts was found in the database afterwards.

Start with `__main__.py`; `load.py` and `baseline.py` are processes of their own, as are the servers.
"""
