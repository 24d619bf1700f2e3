"""Cheats: what a dishonest car gains, played against the dispatcher's own parts with a real model's outputs.

`weights` bends a model, `outputs` runs it in all the ways that honest and dishonest cars would, `cars` are those cars,
`world` plays them against a book, and `command` is `driveway-hil cheats`.
"""
