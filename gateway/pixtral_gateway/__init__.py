"""The gateway, the only tier that clients call: it takes conversations and streams answers."""
