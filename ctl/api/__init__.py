"""The control socket: its protocol, the server in xlbd and the client in xlbctl."""
