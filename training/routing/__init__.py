"""What routing learns with the libraries of training; the request path needs none of it."""
