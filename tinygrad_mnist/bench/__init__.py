"""`tinygrad-mnist bench`: the same training in this package, in its peers and as bare matrix products, in turns.

`works` says what is computed, `tools` by whom, `measure` takes the times, `growth` varies the size, `report` shows, and
`compare` holds two reports against each other. Nothing here is imported before the command is called.
"""
