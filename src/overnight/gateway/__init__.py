"""What: model calls, from wire format to answer.
Owns: upstream connections, prices, failure classes.
Depends on: domain.
Never: hands on an answer that is not recorded.
"""
