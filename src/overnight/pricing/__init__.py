"""What: the cost of a model call: prices, usage as providers report it, fees of provider-run tools, output limits. Pure.
Depends on: domain.
Never: reads or writes the ledger.
"""
