"""The output folder: leases, objects, the ledger and repair."""
