"""The demo page: a search page over a running server, beside BM25, with what each tower looked at."""
