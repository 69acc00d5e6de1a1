"""The VM cache server's protocol: messages, errors on the wire, and the client. Loads gRPC only when used."""
