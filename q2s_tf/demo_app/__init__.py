"""The demo page: search over a running server, next to BM25, with the channel weights of both towers."""
