"""Nights again: recordings, the promises they must keep, and what a policy would have made of them."""
