"""The HTTP and WebSocket routes; thin shells around the session manager and the engine."""
