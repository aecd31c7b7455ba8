"""Accounts: who owns images, how much they may store, their keys and the settings of their delivery."""
