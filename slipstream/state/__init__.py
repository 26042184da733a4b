"""What outlives a request, a worker and the process: the shared table of statistics (the ledger comes beside it).

Imports nothing above ``config.snapshot``: rooms above read and write the table, it knows none of them.
"""
