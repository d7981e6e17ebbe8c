"""The demo page: hybrid search over a running server, next to BM25."""
