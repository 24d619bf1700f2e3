"""The lease protocol under the worst that brokers, power and clocks may do, in virtual time and from a seed."""
