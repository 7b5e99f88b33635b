"""The usual bugs of ledgers, as patches that are applied to a copy of the checkout: does any test notice?"""
