"""`report.html`: the report as one page that opens without a network, to be looked at and not only read."""
