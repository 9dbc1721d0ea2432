"""The network service around the KSSM runtime: REST, WebSocket, sessions and their store."""
