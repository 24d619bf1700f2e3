"""Keys, envelopes, statements and the ledger: what may be believed, and proof of what was done."""
