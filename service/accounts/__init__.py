"""Accounts: whose images there are, how much they may store, and the keys that act for them."""
