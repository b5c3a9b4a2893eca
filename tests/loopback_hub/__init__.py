"""A small Hub on the loopback interface, and processes that push to it and download from it, without patches.

The client is the real huggingface_hub. `repository` holds the state, `cards` what is refused in a card, `faults` what
goes wrong when a test orders it; `exchange` is the HTTP, `api` what can be asked for, `server` all of it together.
`client` is a process that uses the Hub, and `transfers` what such a process does in the tests.
"""
