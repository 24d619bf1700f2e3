"""Real processes under continuous faults: brokers, dispatchers and agents are killed, frozen, cut off and filled up.

`driveway-hil faults` sets a small fleet going (`ground.py`), injects faults of every kind from a seed (`kinds.py`,
`schedule.py`) through a proxy in every MQTT connection (`proxy.py`) and by signals, and then does the accounts
(`books.py`, `accounts.py`): from the dispatcher's rows, every agent's own store and the count of executions, each
read independently of the others.
"""
