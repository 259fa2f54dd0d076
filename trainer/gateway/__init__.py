"""The embedded gateway: contract, store, server, scheduler, client and sync."""
